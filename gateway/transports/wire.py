"""What `ringcast serve` adds to ASGI for a connection; where another server runs the application, its `send` is all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


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
