"""A node of several ends: its clients leave in time, no faster than the others take them, and get everything."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from itertools import pairwise
from typing import Any

import pytest

from tests.support.clients import TRANSPORTS, Client, Ended, SSEClient, connect, decode_cursor
from tests.support.command import ringcast
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, token
from tests.support.publishing import publish
from tests.support.redis import RedisServer

ANN = token("ann", ["topic:*"])
NEWS = "topic:news"
STREAMS = 100  # over each of two transports, and as many polls
WINDOW = 2.0  # seconds in which they leave, within the window of DRAIN
DRAIN = WINDOW + 2.0
RATE = 200  # connections a second that each node says it takes


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


async def nodes(stack: AsyncExitStack, redis: RedisServer, names: str, **settings: Any) -> list[Gateway]:
    """Nodes that know each other."""
    found = [Gateway(broker=redis.url, node=name, partitions=64, **settings) for name in names]
    for node in found:
        await stack.enter_async_context(node)
    for node in found:
        await node.until(lambda node=node: states(node) == dict.fromkeys(names, "active"))  # type: ignore[misc]
    return found


def states(node: Gateway) -> dict[str, str]:
    with node.http() as http:
        return {each["node"]: each["state"] for each in http.get("/v1/nodes").json()["nodes"]}


async def moves(client: Client, to: Gateway) -> tuple[float, Client]:
    """Obey the goodbye; returns when the new connection was asked for."""
    goodbye = await client.frame("goodbye", within=60)
    assert (goodbye["code"], goodbye["reconnect"]) == (4100, True)
    try:
        while True:
            await client.receive(goodbye["after_ms"] / 1000)  # it goes on receiving
    except TimeoutError:
        pass
    at = time.monotonic()
    again = await connect(client.transport, to.url, ANN, channels=[NEWS], cursor=client.cursor)
    await client.close()
    return at, again


async def polls(http: Any, cursor: str, to: Any) -> tuple[float, int]:
    """Wait in a poll, and go on where the next one is answered; returns when, and the offset that came there."""
    answer = await http.get("/v1/poll", params={"channels": NEWS, "cursor": cursor, "wait": "60"})
    assert answer.status_code == 204
    assert int(answer.headers["Retry-After"]) >= 1
    at = time.monotonic()
    cursor = answer.headers["Ringcast-Cursor"]
    again = await to.get("/v1/poll", params={"channels": NEWS, "cursor": cursor, "wait": "60"})
    (message,) = again.json()["messages"]
    return at, message["offset"]


def most_within_a_second(times: list[float]) -> int:
    times = sorted(times)
    return max(sum(first <= time < first + 1 for time in times) for first in times)


async def test_clients_leave_no_faster_than_the_others_take_them(redis: RedisServer, stack: AsyncExitStack) -> None:
    a, b, c = await nodes(stack, redis, "abc", drain=f"{DRAIN:g}s", accept_rate=RATE)
    streams = await asyncio.gather(*(
        connect(transport, a.url, ANN, channels=[NEWS]) for transport in ("websocket", "sse") for _ in range(STREAMS)
    ))  # fmt: skip
    for client in streams:
        await client.joined()
        stack.push_async_callback(client.close)
    deaf = [await connect(transport, a.url, ANN, channels=[NEWS]) for transport in ("websocket", "sse")]
    https = [await stack.enter_async_context(node.api(ANN)) for node in (a, b)]
    cursor = streams[0].cursor
    polling = [asyncio.create_task(polls(https[0], cursor, https[1])) for _ in range(STREAMS)]
    await a.until(lambda: a.metric("ringcast_connections", transport="poll") == STREAMS)

    moving = [asyncio.create_task(moves(client, (b, c)[n % 2])) for n, client in enumerate(streams)]
    ignoring = [asyncio.create_task(client.ended(60)) for client in deaf]
    a.signal(signal.SIGTERM)
    began = time.monotonic()
    found = await asyncio.gather(*moving)
    assert await asyncio.gather(*ignoring) == [4100, 4100]
    for client in deaf:
        assert client.goodbye is not None
        await client.close()
    assert await asyncio.to_thread(a.ended) == 0
    assert time.monotonic() - began < DRAIN + 14
    assert not a.complaints()

    # What was told is exact; that the clients did it is a matter of how busy this machine is.
    told = [goodbye["after_ms"] / 1000 for client in streams if (goodbye := client.goodbye)]
    assert len(told) == 2 * STREAMS
    assert max(told) < WINDOW
    assert max(later - earlier for earlier, later in pairwise(sorted(told))) < WINDOW / 4
    assert most_within_a_second(told) <= 3 * STREAMS / WINDOW + 2 < 2 * RATE
    for node in (b, c):
        assert most_within_a_second([at for n, (at, _) in enumerate(found) if (b, c)[n % 2] is node]) <= RATE

    sent = await publish(b, NEWS, ["after"])
    for _, client in found:
        assert [frame["offset"] for frame in await client.through(sent[0])] == sent
        await client.close()
    left = await asyncio.gather(*polling)
    assert {offset for _, offset in left} == set(sent)
    assert most_within_a_second([at for at, _ in left]) < STREAMS, "polls are spread as well"


async def test_one_that_waits_serves_whoever_comes_and_a_second_signal_hurries(
    redis: RedisServer, stack: AsyncExitStack
) -> None:
    (node,) = await nodes(stack, redis, "w", drain_wait="60s", drain="60s", grace_period="150s")
    http = await stack.enter_async_context(node.api())
    node.signal(signal.SIGTERM)
    await node.until(lambda: states(node) == {"w": "draining"})
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert node.metric("ringcast_drain_budget") == 0, "there is nobody else"
    clients = [await connect(transport, node.url, ANN, channels=[NEWS]) for transport in TRANSPORTS for _ in range(3)]
    for client in clients:
        await client.joined()
    (offset,) = await publish(node, NEWS, ["late"])
    for client in clients:
        assert (await client.message())["offset"] == offset
    assert node.metric("ringcast_drain_pace") == pytest.approx(len(clients) / 58, rel=0.5)  # polls come and go
    began = time.monotonic()
    node.signal(signal.SIGTERM)
    for client in clients:
        if client.transport != "poll":  # which is answered, and meets nobody the next time
            assert await client.ended() == 4100
            assert client.goodbye is not None
        await client.close()
    assert await asyncio.to_thread(node.ended) == 0
    assert time.monotonic() - began < 14
    assert not node.complaints()


async def test_publishes_under_way_finish_and_a_window_that_is_too_short_is_told(
    redis: RedisServer, stack: AsyncExitStack
) -> None:
    a, b = await nodes(stack, redis, "pq", drain="2s", accept_rate=3)
    clients = [await connect("websocket", a.url, ANN, channels=[NEWS]) for _ in range(4)]
    body = b'{"channel": "topic:news", "event": "test", "data": "begun before"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
    lines = ["POST /v1/publish HTTP/1.1", "Host: x", f"Authorization: Bearer {API_KEY}", f"Content-Length: {len(body)}"]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body[:10])
    idle = await asyncio.open_connection("127.0.0.1", a.port)
    idle[1].write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await idle[0].readuntil(b'"}')).startswith(b"HTTP/1.1 200 OK\r\n")
    a.signal(signal.SIGTERM)
    for client in clients:
        assert (await client.frame("goodbye"))["after_ms"] == 0  # there is no time to spread them over
    with pytest.raises(OSError, match="Connect"):  # nobody listens: a balancer leads whoever comes to another node
        await asyncio.open_connection("127.0.0.1", a.port)
    assert await idle[0].read() == b"", "nor is a connection kept for what comes next"
    idle[1].close()
    writer.write(body[10:])
    answer = await reader.read()  # to the end of the connection, likewise
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert b'"duplicate":false' in answer
    for client in clients:
        assert (await client.message())["data"] == "begun before"
        assert await client.ended() == 4100
        await client.close()
    writer.close()
    assert await asyncio.to_thread(a.ended) == 0
    assert "4 clients are sent away within 0 s, 4 a second, while the other nodes take 3 a second" in a.stderr
    await b.until(lambda: states(b) == {"q": "active"})


def test_windows_that_cannot_hold_are_refused_at_the_start() -> None:
    answer = ringcast("serve", "--port", "0", "--drain-wait", "10s")
    assert answer.returncode == 2
    assert "do not fit in grace_period (30s): set it to at least 34s" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


async def test_an_event_source_is_told_its_last_position_when_it_is_closed(
    redis: RedisServer, stack: AsyncExitStack
) -> None:
    """It reads no goodbye, so it comes back with the last id that it had."""
    a, b = await nodes(stack, redis, "st", drain="2500ms")
    client = await connect("sse", a.url, ANN, channels=[NEWS])
    assert isinstance(client, SSEClient)
    await client.joined()

    async def steadily() -> None:
        while True:
            await publish(b, NEWS, ["tick"])
            await asyncio.sleep(0.02)

    publishing = asyncio.create_task(steadily())
    a.signal(signal.SIGTERM)
    seen: list[int] = []
    with suppress(Ended):
        while True:
            seen.append((await client.message())["offset"])
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    assert len(seen) > 1
    assert decode_cursor(client.last_event_id)[NEWS] == seen[-1]
    await client.close()
