"""Subscribing while messages pass at full speed."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.support.clients import TRANSPORTS, encode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.publishing import publish
from tests.support.raw import Raw, RawPoll, RawStream

ANN = token("ann", ["*"])
MESSAGES, CLIENTS, ROUNDS = 10_000, 200, 50


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"heartbeat": "60s", "linger": "100ms", "toml": "[channels.deep]\nhistory_size = 100000"}


async def join(gateway: Gateway, transport: str, channel: str) -> Raw:
    if transport == "poll":
        return await RawPoll.open(gateway.url, ANN, channel)
    return await RawStream.open(transport, gateway.url, ANN, channel)


async def test_joining_while_messages_pass_at_full_speed_loses_nothing(gateway: Gateway) -> None:
    """Each client knows from the start where it stands, and sees all that lies above it, once and in order."""
    channel = "deep:race"
    chance = random.Random(20261121)
    joined: list[asyncio.Task[Raw]] = []
    published: list[int] = []
    try:
        for _ in range(ROUNDS):
            publishing = asyncio.create_task(publish(gateway, channel, range(MESSAGES // ROUNDS)))
            for _ in range(CLIENTS // ROUNDS):
                joined.append(asyncio.create_task(join(gateway, TRANSPORTS[len(joined) % 3], channel)))
                await asyncio.sleep(chance.uniform(0, 0.005))
            published += await publishing
        clients = await asyncio.gather(*joined)
        await asyncio.gather(*(client.reach(published[-1]) for client in clients))
    finally:
        for task in joined:
            if not task.done() or task.exception() is None:
                await (await task).close()
    assert len(published) == MESSAGES
    for client in clients:
        assert client.seen == [offset for offset in published if offset > client.start]
    starts = [client.start for client in clients]
    assert sum(published[0] <= start < published[-1] for start in starts) > CLIENTS / 2, "they joined too early or late"


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_leaving_and_coming_back_while_messages_pass_loses_nothing(gateway: Gateway, transport: str) -> None:
    """Every few messages the line is cut and the client comes back: from what is recent, from the store, live."""
    channel = f"deep:storm-{transport}"
    publishing = asyncio.create_task(publish(gateway, channel, range(MESSAGES)))

    async def roam(seed: int) -> tuple[int, list[int], RawStream]:
        chance = random.Random(seed)
        client = await RawStream.open(transport, gateway.url, ANN, channel)
        start, seen = client.start, list[int]()
        while not publishing.done():
            await asyncio.sleep(chance.uniform(0, 0.05))
            await client.close()
            seen += client.seen
            cursor = encode_cursor({channel: seen[-1] if seen else start})
            client = await RawStream.open(transport, gateway.url, ANN, channel, cursor=cursor)
        return start, seen, client

    roamed = await asyncio.gather(*(roam(seed) for seed in range(10)))
    published = await publishing + await publish(gateway, channel, ["the last"])
    for start, seen, client in roamed:
        await client.reach(published[-1])
        await client.close()
        assert seen + client.seen == [offset for offset in published if offset > start]
