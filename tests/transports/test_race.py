"""Subscribing while messages pass at full speed."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.clients import TRANSPORTS, encode_cursor, reset_on_close
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
        published += await publish(gateway, channel, ["the last"])  # which even the last to join waits for
        await asyncio.gather(*(client.reach(published[-1]) for client in clients))
    finally:
        for task in joined:
            if not task.done() or task.exception() is None:
                await (await task).close()
    assert len(published) == MESSAGES + 1
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


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_clients_that_vanish_at_any_moment_leave_nothing_behind(gateway: Gateway, transport: str) -> None:
    """In the handshake, while they are let in, while they catch up, while they wait: by a reset or a plain close."""
    channel = f"deep:churn-{transport}"
    offsets = await publish(gateway, channel, range(2000))
    cursor = encode_cursor({channel: offsets[0]})
    request = raw_request(gateway, transport, f"channels={channel},{channel}-other&cursor={cursor}&wait=5")
    publishing = asyncio.create_task(publish(gateway, channel, range(MESSAGES // 2)))
    chance = random.Random(20261121)

    async def vanish(number: int) -> None:
        reader, writer = await asyncio.open_connection(*address(gateway))
        writer.write(request[: chance.randrange(len(request))] if number % 10 == 0 else request)
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.choice([0, 0.001, 0.003, 0.01, 0.03, 0.1])):
                while await reader.read(65536):
                    pass
        if number % 2:
            reset_on_close(writer.get_extra_info("socket"))
            writer.transport.abort()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    for first in range(0, 300, 30):
        await asyncio.gather(*(vanish(number) for number in range(first, first + 30)))
    await publishing


def address(gateway: Gateway) -> tuple[str, int]:
    parts = urlsplit(gateway.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def raw_request(gateway: Gateway, transport: str, query: str) -> bytes:
    path = {"websocket": "ws", "sse": "sse", "poll": "poll"}[transport]
    netloc = urlsplit(gateway.url).netloc
    lines = [f"GET /v1/{path}?{query} HTTP/1.1", f"Host: {netloc}", f"Authorization: Bearer {ANN}"]
    if transport == "websocket":
        lines += [
            "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()
