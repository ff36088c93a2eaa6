"""The blocking and the asynchronous client behind one face, so that a test holds both to the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from publisher import AsyncPublisher, Outcome, Publisher, Receipt


class Either:
    """Awaits either client; a blocking one works in a thread."""

    def __init__(self, client: Publisher | AsyncPublisher) -> None:
        self.client = client

    async def publish(self, *args: Any, **options: Any) -> Any:
        if isinstance(self.client, AsyncPublisher):
            return await self.client.publish(*args, **options)
        return await asyncio.to_thread(self.client.publish, *args, **options)

    async def one(self, *args: Any, **options: Any) -> Receipt:
        receipt = await self.publish(*args, **options)
        assert isinstance(receipt, Receipt)
        return receipt

    async def many(self, items: Iterable[Any]) -> list[Outcome]:
        client = self.client
        if isinstance(client, AsyncPublisher):
            return [outcome async for outcome in client.publish_many(items)]
        return await asyncio.to_thread(lambda: list(client.publish_many(items)))

    async def do(self, verb: str, *args: Any, **options: Any) -> Any:
        """`disconnect`, `subscribe`, `unsubscribe` or `connections`."""
        method = getattr(self.client, verb)
        if isinstance(self.client, AsyncPublisher):
            return await method(*args, **options)
        return await asyncio.to_thread(method, *args, **options)

    async def close(self) -> None:
        if isinstance(self.client, AsyncPublisher):
            await self.client.aclose()
        else:
            self.client.close()
