"""How a gateway ends, is full, or comes back with nothing: clients are told what to do, each in its transport's way."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

import pytest
from websockets.asyncio.client import connect as connect_websocket

from tests.support.clients import TRANSPORTS, Frame, connect, decode_cursor, encode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import bearer, token
from tests.support.knock import knock
from tests.support.publishing import publish
from tests.support.raw import RawStream
from tests.support.sse import Event, Parser

ANN = token("ann", ["*"])


async def stop(gateway: Gateway) -> int:
    return await asyncio.to_thread(gateway.stop)


async def test_everyone_is_sent_away_with_a_cursor() -> None:
    """Streams by a goodbye and 4100, polls by an answer; no request is broken off, and the process ends with 0."""
    with Gateway() as gateway:
        streams = [
            await connect(transport, gateway.url, ANN, channels=["topic:a"])
            for transport in ("websocket", "sse") for _ in range(20)
        ]  # fmt: skip
        for client in streams:
            await client.joined()
        offsets = await publish(gateway, "topic:a", range(5))
        for client in streams:
            await client.through(offsets[-1])
        async with gateway.api(ANN) as http:
            params = {"channels": "topic:a", "cursor": streams[0].cursor, "wait": "25"}
            polls = [asyncio.create_task(http.get("/v1/poll", params=params)) for _ in range(10)]
            await gateway.until(lambda: gateway.metric("ringcast_connections", transport="poll") == 10)
            began = time.monotonic()
            stopping = asyncio.create_task(stop(gateway))
            answers = await asyncio.gather(*polls)
            codes = await asyncio.gather(*(client.ended() for client in streams))
            code = await stopping
        assert time.monotonic() - began < 8
        assert code == 0
        assert gateway.complaints() == []
        assert set(codes) == {4100}
        for client in streams:
            goodbye = client.goodbye
            assert goodbye is not None
            assert (goodbye["code"], goodbye["reconnect"]) == (4100, True)
            assert goodbye["after_ms"] >= 0
            assert decode_cursor(goodbye["cursor"])["topic:a"] == offsets[-1]
            await client.close()
        for answer in answers:
            assert answer.status_code == 204
            assert int(answer.headers["Retry-After"]) >= 1
            assert decode_cursor(answer.headers["Ringcast-Cursor"])["topic:a"] == offsets[-1]


async def test_a_stream_keeps_its_position_in_an_id_when_it_is_sent_away() -> None:
    """An EventSource reads no goodbye: it needs the `id:` and the `retry:`."""
    with Gateway() as gateway:
        async with gateway.api(ANN) as http, http.stream("GET", "/v1/sse?channels=topic:a") as response:
            parser = Parser()
            events: list[Event] = []
            chunks = response.aiter_raw()
            while not any(event.data is None for event in events):
                events += parser.feed(await anext(chunks))
            offsets = await publish(gateway, "topic:a", [1])
            gateway.signal(signal.SIGTERM)
            async for chunk in chunks:
                events += parser.feed(chunk)
        names = [event.event for event in events if event.data is not None]
        assert names == ["ringcast.welcome", "test", "ringcast.goodbye"]
        assert decode_cursor(events[-1].last_id)["topic:a"] == offsets[-1]
        assert parser.retry is not None


async def test_messages_on_their_way_arrive_before_the_goodbye() -> None:
    with Gateway(toml="[channels.deep]\nhistory_size = 100000") as gateway:
        clients = [await connect(t, gateway.url, ANN, channels=["deep:a"]) for t in ("websocket", "sse")]
        for client in clients:
            await client.joined()
        publishing = asyncio.create_task(publish(gateway, "deep:a", range(2000)))
        received: list[list[Frame]] = [[await client.message()] for client in clients]
        offsets = await publishing
        stopping = asyncio.create_task(stop(gateway))
        for client, frames in zip(clients, received, strict=True):
            while client.goodbye is None:
                frames.append(await client.receive())
            assert await client.ended() == 4100
            got = [frame["offset"] for frame in frames if frame["type"] == "message"]
            assert got == offsets[: len(got)], "in order and without a hole"
            # What did not fit lies above the goodbye's cursor, and what came lies at or below.
            assert decode_cursor(client.goodbye["cursor"])["deep:a"] >= got[-1]
            if len(got) < len(offsets):
                assert decode_cursor(client.goodbye["cursor"])["deep:a"] < offsets[len(got)]
            await client.close()
        assert await stopping == 0


async def told_to_go(gateway: Gateway, code: str, close: int) -> None:
    """Newcomers are turned away so that they come back by themselves: each by what its transport can tell."""
    async with connect_websocket(
        gateway.ws_url + "/v1/ws", additional_headers=bearer(ANN), proxy=None
    ) as websocket:  # fmt: skip
        await websocket.wait_closed()
        assert websocket.close_code == close
    async with gateway.api(ANN) as http:
        stream = await http.get("/v1/sse", params={"channels": "topic:a"})
        # Another status would stop an EventSource for ever.
        assert stream.status_code == 200
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        parser = Parser()
        (event,) = parser.feed(stream.content)
        assert event.event == "ringcast.goodbye"
        assert f'"code":{close},"reconnect":true' in str(event.data)
        assert parser.retry is not None
        poll = await http.get("/v1/poll", params={"channels": "topic:a"})
        assert (poll.status_code, poll.json()["code"]) == (503, code)
        assert int(poll.headers["Retry-After"]) >= 1


async def test_a_full_gateway_says_so() -> None:
    with Gateway(max_connections=2) as gateway:
        clients = [await connect(t, gateway.url, ANN, channels=["topic:a"]) for t in ("websocket", "sse")]
        await told_to_go(gateway, "full", 4104)
        await clients[0].close()
        await gateway.until(lambda: gateway.metric("ringcast_connections") == 1)
        for transport in TRANSPORTS:
            async with await connect(transport, gateway.url, ANN, channels=["topic:a"]) as client:
                await client.joined()
            await gateway.until(lambda: gateway.metric("ringcast_connections") == 1)
        await clients[1].close()


async def test_one_that_has_not_said_who_it_is_is_told_as_well() -> None:
    with Gateway() as gateway:
        async with connect_websocket(gateway.ws_url + "/v1/ws", proxy=None) as websocket:
            began = time.monotonic()
            assert await stop(gateway) == 0
            await websocket.wait_closed()
            assert websocket.close_code == 4100
        assert time.monotonic() - began < 5, "nobody waits until it does"


@pytest.mark.parametrize("native", [True, False], ids=["native", "asgi"])
async def test_a_busy_gateway_says_so_before_it_asks_who_it_is(native: bool) -> None:
    """One whose event loop is late at any time, for it is to be never later than a microsecond."""
    origins = "https://app.example"
    with Gateway(native=native, max_lag="1us", allowed_origins=origins) as gateway, gateway.http() as http:
        poll = {"channels": "topic:a", "wait": "0"}
        await gateway.until(lambda: http.get("/v1/poll", params=poll).status_code == 503)
        before = gateway.metric("ringcast_refusals_total", code="busy")
        await told_to_go(gateway, "busy", 4104)
        assert await knock(gateway, headers={"Authorization": "Bearer of-no-one"}) == await knock(gateway)
        assert (await knock(gateway))[0] == 4104
        assert (await knock(gateway, origin="https://elsewhere.example"))[0] == 403
        assert gateway.metric("ringcast_refusals_total", code="busy") == before + 6
        assert gateway.metric("ringcast_refusals_total", code="unauthorised") == 0
        assert await publish(gateway, "topic:a", ["as before"])
        assert gateway.complaints() == []


async def test_a_draining_gateway_listens_no_more_and_says_so_to_who_had_come() -> None:
    """One that reads nothing holds up the end for a moment."""
    with Gateway(toml="[channels.deep]\nhistory_size = 100000") as gateway:
        stuck = await RawStream.open("sse", gateway.url, ANN, "deep:a", receive_buffer=4096)
        stuck.transport.pause_reading()
        await publish(gateway, "deep:a", ["x" * 1000] * 4000)
        silent = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(2)]
        gateway.signal(signal.SIGTERM)
        await gateway.until(lambda: refuses(gateway.port))
        answers = []
        for path, (reader, writer) in zip(("sse", "poll"), silent, strict=True):
            head = f"GET /v1/{path}?channels=topic:a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ANN}\r\n\r\n"
            writer.write(head.encode())
            answers.append(await reader.read())
            writer.close()
        assert b" 200 OK\r\n" in answers[0]
        assert b'"code":4100' in answers[0]
        assert b" 503 Service Unavailable\r\n" in answers[1]
        assert b'"code":"draining"' in answers[1]
        assert await stop(gateway) == 0
        assert gateway.complaints() == []
        await stuck.close()


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return True
    return False


async def test_a_gateway_that_was_killed_tells_whoever_comes_back() -> None:
    """Its memory is gone: a reset, then all that is held now. The clients notice the cut by themselves."""
    with Gateway() as gateway:
        clients = {t: await connect(t, gateway.url, ANN, channels=["topic:a"]) for t in TRANSPORTS}
        for client in clients.values():
            await client.joined()
        offsets = await publish(gateway, "topic:a", range(3))
        for client in clients.values():
            await client.through(offsets[-1])
        gateway.kill()
        for client in clients.values():
            assert await client.ended() in (None, 1006)
            await client.close()
        gateway.start()
        held = await publish(gateway, "topic:a", ["new"])
        assert held[0] > offsets[-1], "an offset is never issued twice"
        for transport, client in clients.items():
            cursor = client.cursor
            async with await connect(transport, gateway.url, ANN, channels=["topic:a"], cursor=cursor) as back:
                resets = {}
                while (frame := await back.frame("reset", "message"))["type"] == "reset":
                    resets[frame["channel"]] = frame
                assert resets["topic:a"]["offset"] == offsets[-1]
                assert frame["offset"] == held[0]


async def test_a_cursor_of_another_deployment_is_reset() -> None:
    """Where its positions lie above ours, as where they lie below: neither is ever taken for one of ours."""
    with Gateway() as older, Gateway() as newer:
        ours = await publish(older, "topic:a", [1, 2])
        theirs = await publish(newer, "topic:a", [1, 2])
        assert ours[-1] < theirs[0]
        for gateway, position, held in ((older, theirs[-1], []), (newer, ours[0] - 10**9, theirs)):
            cursor = encode_cursor({"topic:a": position})
            for transport in TRANSPORTS:
                async with await connect(transport, gateway.url, ANN, channels=["topic:a"], cursor=cursor) as client:
                    reset = await client.frame("reset", "message")
                    assert reset["type"] == "reset"
                    assert reset["offset"] == min(position, ours[-1])
                    frames = await client.messages(len(held))
                    assert [frame["offset"] for frame in frames] == held
