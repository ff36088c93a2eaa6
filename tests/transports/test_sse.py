"""What only SSE has: the bytes of the stream, and positions as an EventSource keeps them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.support.clients import SSEClient, connect, decode_cursor, encode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.publishing import publish

ANN = token("ann", ["*"])


class Blocks:
    """A stream as its blocks of lines, each with the time it came at."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._chunks = response.aiter_raw()
        self._held = b""

    async def next(self, within: float = 10.0) -> tuple[float, list[str]]:
        async with asyncio.timeout(within):
            while b"\n\n" not in self._held:
                self._held += await anext(self._chunks)
        block, _, self._held = self._held.partition(b"\n\n")
        return time.monotonic(), block.decode().split("\n")

    async def until(self, prefix: str) -> tuple[float, list[str]]:
        """The next block with a line that begins so."""
        async with asyncio.timeout(10):
            while True:
                at, lines = await self.next()
                if any(line.startswith(prefix) for line in lines):
                    return at, lines


@asynccontextmanager
async def stream(gateway: Gateway, headers: dict[str, str] | None = None, **params: Any) -> AsyncIterator[Blocks]:
    async with gateway.api(ANN) as http, http.stream("GET", "/v1/sse", params=params, headers=headers) as response:
        assert response.status_code == 200
        yield Blocks(response)


async def test_the_head_keeps_caches_and_buffering_proxies_away(gateway: Gateway) -> None:
    async with stream(gateway, channels="topic:head") as blocks:
        headers = blocks.response.headers
        assert headers["Content-Type"].partition(";")[0] == "text/event-stream"
        assert headers["Cache-Control"] == "no-store, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert "Content-Length" not in headers


async def test_the_first_bytes_come_at_once(gateway: Gateway) -> None:
    """`retry:`, the welcome, and the position as a checkpoint: also of channels that nobody has published to."""
    async with stream(gateway, channels="topic:unheard") as blocks:
        began = time.monotonic()
        _, retry = await blocks.next()
        assert retry[0].startswith("retry: ")
        assert 500 <= int(retry[0].removeprefix("retry: ")) <= 5000
        _, (event, data) = await blocks.next()
        assert event == "event: ringcast.welcome"
        welcome = json.loads(data.removeprefix("data: "))
        at, (checkpoint,) = await blocks.next()
        assert at - began < 1
    told = decode_cursor(checkpoint.removeprefix("id: "))
    assert told == {entry["channel"]: entry["offset"] for entry in welcome["channels"]}
    assert set(told) == {"topic:unheard", "user:ann", "jobs:ann"}


async def test_a_message_is_followed_by_a_checkpoint_within_a_second(gateway: Gateway) -> None:
    """It stands in an `id:` of its own: no message has one, so none is skipped when several wait."""
    async with stream(gateway, channels="topic:check") as blocks:
        await blocks.until("id: ")
        for _ in range(2):
            offsets = await publish(gateway, "topic:check", range(3))
            arrived = 0.0
            for offset in offsets:
                arrived, lines = await blocks.until("event: test")
                assert [line.partition(": ")[0] for line in lines] == ["event", "data"]
                assert json.loads(lines[1].removeprefix("data: "))["offset"] == offset
            at, (checkpoint,) = await blocks.until("id: ")
            assert at - arrived < 1.5
            assert decode_cursor(checkpoint.removeprefix("id: "))["topic:check"] == offsets[-1]


async def test_a_busy_stream_has_a_checkpoint_a_second_and_no_more(gateway: Gateway) -> None:
    async with stream(gateway, channels="topic:busy") as blocks:
        await blocks.until("id: ")

        async def talk() -> None:
            while True:
                await publish(gateway, "topic:busy", [1])

        talking = asyncio.create_task(talk())
        times: list[float] = []
        while len(times) < 4:
            times.append((await blocks.until("id: "))[0])
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
    assert times[-1] - times[0] == pytest.approx(3, abs=1)


async def test_no_text_of_a_publisher_becomes_a_line_of_the_stream(gateway: Gateway) -> None:
    texts = ["a\nid: 1\n\nevent: forged\ndata: x\n\n", "\r\n\r\n", "\r", "\u2028\u2029\x85", "\x00", ":", "é😀"]
    async with stream(gateway, channels="topic:é\u00a1,topic:lines") as blocks:
        await publish(gateway, "topic:lines", texts)
        for text in texts:
            _, lines = await blocks.until("event: test")
            assert [line.partition(": ")[0] for line in lines] == ["event", "data"]
            assert json.loads(lines[1].removeprefix("data: "))["data"] == text


@pytest.mark.parametrize("event", ["a\nid: 1", "a\r\n\r\ndata: x", "a\x00b", "ringcast.ping", "open", "error"])
async def test_no_event_name_can_forge_a_line_or_a_frame(gateway: Gateway, event: str) -> None:
    async with gateway.api() as http:
        answer = await http.post("/v1/publish", json={"channel": "topic:lines", "event": event, "data": 1})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_event")


async def test_last_event_id_beats_the_cursor_of_the_url(gateway: Gateway) -> None:
    """An EventSource comes back to the URL it was made with, so that one is old."""
    offsets = await publish(gateway, "topic:back", range(5))
    old, new = (encode_cursor({"topic:back": offset}) for offset in (offsets[0], offsets[3]))
    headers = {"Last-Event-ID": new}
    async with await connect(
        "sse", gateway.url, ANN, channels=["topic:back"], cursor=old, headers=headers
    ) as client:  # fmt: skip
        assert (await client.message())["offset"] == offsets[4]


async def test_an_event_source_misses_nothing_by_its_last_event_id(gateway: Gateway) -> None:
    """After a cut it sees at most a second's messages twice."""
    async with await connect("sse", gateway.url, ANN, channels=["topic:es"]) as client:
        assert isinstance(client, SSEClient)
        await client.joined()
        offsets = await publish(gateway, "topic:es", range(10))
        await client.through(offsets[-1])
        await client.frame("checkpoint")
        offsets += await publish(gateway, "topic:es", range(10, 12))
        await client.through(offsets[-1])
        await client.cut()
        kept = client.last_event_id
    offsets += await publish(gateway, "topic:es", [12])
    headers = {"Last-Event-ID": kept}
    async with await connect("sse", gateway.url, ANN, channels=["topic:es"], headers=headers) as client:
        frames = await client.through(offsets[-1])
    seen = [frame["offset"] for frame in frames]
    assert seen == offsets[-len(seen) :]
    assert len(seen) in (1, 3)


@pytest.mark.parametrize("kept", ["nonsense", "e30e", "x" * 4097])
async def test_a_malformed_last_event_id_is_refused(gateway: Gateway, kept: str) -> None:
    async with gateway.api(ANN) as http:
        answer = await http.get("/v1/sse", params={"channels": "topic:a"}, headers={"Last-Event-ID": kept})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_cursor")


async def test_a_stream_ends_with_its_position_and_a_spread_retry() -> None:
    """An EventSource keeps both: it comes back where it was, and not at the same moment as all others."""
    with Gateway(jwt_leeway="0s") as gateway:
        short = token("ann", ["*"], expires_in=2)
        async with gateway.api(short) as http, http.stream("GET", "/v1/sse?channels=topic:end") as response:
            blocks = Blocks(response)
            await blocks.until("id: ")
            offsets = await publish(gateway, "topic:end", [1])
            await blocks.until("event: test")
            await blocks.until("event: ringcast.goodbye")
            rest = [await blocks.next(), await blocks.next()]
            with pytest.raises(StopAsyncIteration):
                await blocks.next()
    fields = dict(line.split(": ", 1) for _, lines in rest for line in lines)
    assert set(fields) == {"retry", "id"}
    assert 0 <= int(fields["retry"]) <= 5000
    assert decode_cursor(fields["id"])["topic:end"] == offsets[-1]


async def test_a_head_request_opens_no_stream(gateway: Gateway) -> None:
    async with gateway.api(ANN) as http:
        answer = await http.head("/v1/sse", params={"channels": "topic:a"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/event-stream")


async def test_whoever_names_no_channel_and_has_none_is_refused(gateway: Gateway) -> None:
    async with gateway.api() as http:  # an API key has no channels of its own
        answer = await http.get("/v1/sse")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
