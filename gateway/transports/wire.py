"""What connections through ASGI share: their place on the node, and what `ringcast serve` adds to `send`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from gateway.node import Node


@contextmanager
def connection(node: Node, transport: str, address: str) -> Iterator[None]:
    """Count a connection for as long as it lasts. Raises Problem `draining`, `full`, `rate_limited`."""
    node.admission.arrive(transport, address)
    try:
        yield
    finally:
        node.admission.gone(transport, address)


def abort_of(scope: MutableMapping[str, Any], otherwise: Callable[[], Any]) -> Callable[[], Any]:
    """Cuts the connection at once; to close it would wait for the peer to take what was sent."""
    found: Callable[[], Any] = scope.get("extensions", {}).get("ringcast.abort", otherwise)
    return found


def drained_of(scope: MutableMapping[str, Any]) -> Callable[[], Awaitable[Any]]:
    """Waits until little of what was written is still in this process, or the connection is lost."""
    found: Callable[[], Awaitable[Any]] = scope.get("extensions", {}).get("ringcast.drained", _sent)
    return found


async def _sent() -> None:
    pass
