"""What the tests of the brokers do again and again."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.brokers.base import Broker, Page
from gateway.errors import Problem
from gateway.message import Draft, new_id

NEWS = "topic:news"


def draft(channel: str = NEWS, data: bytes = b"1", **fields: Any) -> Draft:
    return Draft(channel, "test", data, fields.pop("id", new_id()), **fields)


async def publish(broker: Broker, *channels: str) -> list[int]:
    """One message to each channel; their offsets."""
    return [(await broker.publish(draft(channel))).offset for channel in channels]


async def publish_when_back(broker: Broker, channel: str) -> int:
    """Publish as a publisher with patience does, while the store is away."""
    async with asyncio.timeout(20):
        while True:
            try:
                return (await broker.publish(draft(channel))).offset
            except Problem as problem:
                if problem.code != "unavailable":
                    raise
                await asyncio.sleep(0.05)


async def follow(broker: Broker, *channels: str) -> None:
    await broker.subscribe({broker.partition(channel) for channel in channels})


async def read_all(broker: Broker, channel: str, since: int, limit: int = 100) -> tuple[list[int], Page]:
    """Every offset above `since`, page by page, and the first page."""
    first = page = await broker.read(channel, since, limit)
    offsets = [message.offset for message in page.messages]
    while page.more:
        page = await broker.read(channel, page.reached, limit)
        offsets += [message.offset for message in page.messages]
    return offsets, first


async def check_until_done(broker: Broker, channel: str) -> None:
    """The node's periodic check, in short; to be cancelled."""
    while True:
        try:
            await broker.check([broker.partition(channel)])
        except Problem as problem:
            if problem.code != "unavailable":
                raise
        await asyncio.sleep(0.2)
