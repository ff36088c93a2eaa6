"""Silence: pings on idle connections, positions that stay young on quiet channels, peers that are gone."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from tests.support.clients import TRANSPORTS, PollClient, connect, decode_cursor
from tests.support.gateway import OWN_PARTITIONS, Gateway
from tests.support.keys import bearer, token
from tests.support.publishing import publish, publish_lines
from tests.support.raw import RawStream

ANN = token("ann", ["*"])
HEARTBEAT = 1.0  # seconds; of the suite's gateways
STREAMS = pytest.mark.parametrize("transport", ["websocket", "sse"])


@STREAMS
async def test_an_idle_connection_hears_a_ping_every_heartbeat(gateway: Gateway, transport: str) -> None:
    """As a frame, or an event, that scripts can see: a browser shows them no protocol ping."""
    async with await connect(transport, gateway.url, ANN, channels=["topic:idle"]) as client:
        welcome = await client.frame("welcome")
        assert welcome["heartbeat_ms"] == 1000 * HEARTBEAT
        heard: list[float] = []
        while len(heard) < 3:
            frame = await client.receive(within=3 * HEARTBEAT)
            if frame["type"] == "ping":
                heard.append(time.monotonic())
    between = [later - earlier for earlier, later in pairwise(heard)]
    assert sum(between) / len(between) == pytest.approx(HEARTBEAT, abs=0.5 * HEARTBEAT)


@STREAMS
async def test_a_busy_connection_hears_pings_too(gateway: Gateway, transport: str) -> None:
    async with await connect(transport, gateway.url, ANN, channels=["topic:busy"]) as client:
        await client.joined()

        async def talk() -> None:
            while True:
                await publish(gateway, "topic:busy", [1])

        talking = asyncio.create_task(talk())
        await client.frame("ping", within=3 * HEARTBEAT)
        await client.frame("ping", within=3 * HEARTBEAT)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


async def stays_and_comes_back(gateway: Gateway, transport: str, busy: list[str]) -> None:
    """Stay with a channel for twice its retention while nothing comes on it, be cut off, come back."""
    quiet = f"short:quiet-{transport}-{len(busy)}"
    await publish(gateway, quiet, ["long ago"])
    async with await connect(transport, gateway.url, ANN, channels=[quiet, *busy]) as client:
        await client.joined()
        end = time.monotonic() + 4.0  # the retention is 2 s
        while time.monotonic() < end:
            if busy:
                offsets = await publish_lines(gateway, [f'{{"channel":"{channel}","data":1}}' for channel in busy])
                await client.through(offsets[-1])
                await asyncio.sleep(0.1)
            else:
                await client.receive()
        await client.cut()
    missed = await publish(gateway, quiet, ["missed"])
    async with await connect(transport, gateway.url, ANN, channels=[quiet, *busy], cursor=client.cursor) as client:
        frames = await client.through(missed[0])
    assert [(frame["type"], frame["offset"]) for frame in frames] == [("message", missed[0])], transport


async def test_a_client_of_a_quiet_channel_comes_back_without_a_reset(gateway: Gateway) -> None:
    """Its position moves along, or is told often enough: beside busy channels, and alone."""
    await asyncio.gather(
        *(stays_and_comes_back(gateway, t, [f"topic:busy-{t}-{n}" for n in range(5)]) for t in TRANSPORTS),
        *(stays_and_comes_back(gateway, t, []) for t in TRANSPORTS),
    )


async def test_a_poll_ends_early_where_its_position_would_grow_old(gateway: Gateway) -> None:
    """A quarter of the retention is the longest that one may wait."""
    async with await connect("poll", gateway.url, ANN, channels=["short:poll"]) as client:
        await client.joined()
        async with gateway.api(ANN) as http:
            began = time.monotonic()
            answer = await http.get("/v1/poll", params={"channels": "short:poll", "cursor": client.cursor, "wait": 25})
        assert 0.3 < time.monotonic() - began < 3
    assert answer.status_code == 204
    assert set(decode_cursor(answer.headers["Ringcast-Cursor"])) == {"short:poll", "user:ann", "jobs:ann"}


async def test_a_peer_that_answers_no_protocol_ping_is_closed(gateway: Gateway) -> None:
    """It reads, but nobody is at home: as a browser that a machine put to sleep, or a proxy that lost its client."""
    dead = await RawStream.open("websocket", gateway.url, ANN, "topic:dead")
    dead.answers_pings = False
    alive = await RawStream.open("websocket", gateway.url, ANN, "topic:alive")
    began = time.monotonic()
    async with asyncio.timeout(10 * HEARTBEAT):
        await dead.ended
    assert 2 * HEARTBEAT < time.monotonic() - began < 6 * HEARTBEAT
    await asyncio.sleep(2 * HEARTBEAT)
    assert not alive.ended.done(), "one that answers stays"
    await alive.close()


async def test_a_poll_whose_client_goes_away_is_freed_at_once(gateway: Gateway) -> None:
    async with await connect("poll", gateway.url, ANN, channels=["topic:gone"]) as client:
        await client.joined()
        assert isinstance(client, PollClient)
        waiting = asyncio.create_task(client.receive(within=30))
        await gateway.until(lambda: gateway.metric("ringcast_connections", transport="poll") == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await gateway.until(lambda: gateway.metric("ringcast_sessions") == 0, within=5)


async def test_partitions_are_followed_through_the_linger_only() -> None:
    """Whoever comes back soon finds them as they were."""
    with Gateway(linger="1s") as gateway:
        async with await connect("sse", gateway.url, ANN, channels=["topic:linger"]) as client:
            await client.joined()
        await gateway.until(lambda: gateway.metric("ringcast_sessions") == 0)
        left = time.monotonic()
        assert gateway.metric("ringcast_partitions") > OWN_PARTITIONS
        await gateway.until(lambda: gateway.metric("ringcast_partitions") == OWN_PARTITIONS)
        assert 0.5 < time.monotonic() - left < 5


async def test_a_half_closed_connection_is_freed(gateway: Gateway, transport: str) -> None:
    """The client says that it will send no more, as those do that are going away; it is not waited for."""
    path = {"websocket": "ws", "sse": "sse", "poll": "poll"}[transport]
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ) if transport == "websocket" else ""  # fmt: skip
    writer.write(
        f"GET /v1/{path}?channels=topic:half&since=latest HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: {bearer(ANN)['Authorization']}\r\n{upgrade}\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    writer.write_eof()
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()
    await writer.wait_closed()
