"""NDJSON on a real gateway: an answer for each line, constant memory, and nobody waited for without end."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, token

LINES = 100_000
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"stuck_after": "1s", "jwt_leeway": 0, "max_targets": 10}


class Exchange:
    """One POST of lines whose answers are read while it is still being written, as HTTP/1.1 allows."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, lines: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(lines), lines))
        await self.writer.drain()

    async def finish(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def write(self, chunks: AsyncIterable[bytes] | Iterable[bytes]) -> None:
        if isinstance(chunks, AsyncIterable):
            async for chunk in chunks:
                await self.send(chunk)
        else:
            for chunk in chunks:
                await self.send(chunk)
        await self.finish()

    async def status(self) -> int:
        head = await self.reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1])

    async def answers(self) -> AsyncIterator[dict[str, Any]]:
        """The answer lines, to the end of the body; a cut raises IncompleteReadError or ConnectionError."""
        assert await self.status() == 200
        rest = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            *lines, rest = (rest + (await self.reader.readexactly(size + 2))[:-2]).split(b"\n")
            for line in lines:
                yield json.loads(line)
        assert not rest


@asynccontextmanager
async def exchange(gateway: Gateway, credential: str = API_KEY, receive_buffer: int = 0) -> AsyncIterator[Exchange]:
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=connection)
    writer.write(
        b"POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
        b"Transfer-Encoding: chunked\r\nAuthorization: Bearer %b\r\n\r\n" % credential.encode()
    )
    try:
        yield Exchange(reader, writer)
    finally:
        writer.transport.abort()


async def publish(gateway: Gateway, *chunks: bytes, credential: str = API_KEY) -> list[dict[str, Any]]:
    async with asyncio.timeout(60), exchange(gateway, credential) as post:
        writing = asyncio.create_task(post.write(chunks))
        answers = [answer async for answer in post.answers()]
        await writing
        return answers


def peak(gateway: Gateway, *, forget: bool = False) -> int:
    """The most bytes that were resident at a time, since the start or since it was last forgotten."""
    process = Path("/proc", str(gateway.process.pid))
    if forget:
        (process / "clear_refs").write_text("5")
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def line(number: int, channel: str = "topic:lines") -> bytes:
    return b'{"channel":"%b","event":"tick","data":{"n":%d,"text":"%b"}}\n' % (channel.encode(), number, b"x" * 50)


async def test_100_000_lines_have_an_answer_each_in_constant_memory(gateway: Gateway) -> None:
    async def stream(count: int) -> tuple[int, int]:
        last, answered = 0, 0
        async with asyncio.timeout(120), exchange(gateway) as post:
            chunks = (b"".join(line(n) for n in range(first, first + 500)) for first in range(0, count, 500))
            writing = asyncio.create_task(post.write(chunks))
            async for answer in post.answers():
                answered += 1
                assert answer["line"] == answered
                (receipt,) = answer["results"]
                assert receipt["offset"] > last
                last = receipt["offset"]
            await writing
        return answered, last

    await stream(20_000)  # the channel's log, and the pools of the allocator, are as full as they get
    before = peak(gateway, forget=True)
    answered, last = await stream(LINES)
    assert answered == LINES
    assert peak(gateway) - before < 8 * MEBIBYTE
    with gateway.http() as http:
        newest = http.get("/v1/history", params={"channel": "topic:lines", "since": last - 1}).json()
    assert [message["data"]["n"] for message in newest["messages"]] == [LINES - 1]


async def test_a_bad_line_fails_alone(gateway: Gateway) -> None:
    lines = [
        b'{"channel":"topic:bad","data":1}', b"nope", b'{"channel":"topic:bad","data":NaN}', b'{"data":1}', b"\xff",
        b'{"channel":"jobs:1","data":1}', b'{"channels":["topic:bad","nonsense"],"data":2}', b"[" * 90_000,
        b'{"channel":"topic:bad","data":"\\ud800"}', b'{"channel":"topic:bad","data":3,"x":1}',
        b'{"channel":"topic:bad","data":4}',
    ]  # fmt: skip
    answers = await publish(gateway, b"\n".join(lines))
    assert [answer["line"] for answer in answers] == list(range(1, len(lines) + 1))
    codes = [
        answer["error"]["code"] if "error" in answer
        else [result.get("error", {}).get("code") for result in answer["results"]]
        for answer in answers
    ]  # fmt: skip
    assert codes == [
        [None], "bad_json", "bad_json", "bad_request", "bad_json", ["reserved_channel"], [None, "bad_channel"],
        "bad_request", "bad_json", "bad_request", [None],
    ]  # fmt: skip
    with gateway.http() as http:
        held = http.get("/v1/history", params={"channel": "topic:bad"}).json()["messages"]
    assert [message["data"] for message in held] == [1, 2, 4]


async def test_blank_lines_are_counted_and_passed_over(gateway: Gateway) -> None:
    one = b'{"channel":"topic:blank","data":1}'
    answers = await publish(gateway, b"\n" + one + b"\r\n\r\n", b" \t\n", one, b"\n\n", one)
    assert [answer["line"] for answer in answers] == [2, 5, 7]
    assert all("results" in answer for answer in answers)
    assert await publish(gateway, b"\n\n") == []


async def test_a_line_may_come_in_pieces(gateway: Gateway) -> None:
    answers = await publish(gateway, *(bytes([byte]) for byte in line(1) + line(2)))
    assert [answer["line"] for answer in answers] == [1, 2]


async def test_an_overlong_line_fails_alone_and_is_not_held(gateway: Gateway) -> None:
    await publish(gateway, line(1))
    before = peak(gateway, forget=True)
    overlong = [b"x" * MEBIBYTE] * 64
    answers = await publish(gateway, line(1), *overlong, b"\n", line(3), *overlong)
    assert [(answer["line"], answer.get("error", {}).get("code")) for answer in answers] == [
        (1, None), (2, "too_large"), (3, None), (4, "too_large"),
    ]  # fmt: skip
    assert peak(gateway) - before < 8 * MEBIBYTE


async def test_an_answer_comes_before_the_next_line_is_sent(gateway: Gateway) -> None:
    async with asyncio.timeout(30), exchange(gateway) as post:
        await post.send(line(0))
        answers = post.answers()
        for number in range(1, 20):
            assert (await anext(answers))["line"] == number
            await post.send(line(number))
        await post.finish()
        assert [answer["line"] async for answer in answers] == [20]


async def test_ids_of_lines_are_idempotent(gateway: Gateway) -> None:
    body = b'{"channel":"topic:ids","data":1,"id":"a"}\n'
    answers = await publish(gateway, body * 2, body.replace(b'"data":1', b'"data":2'))
    (first,), (second,), (third,) = (answer["results"] for answer in answers)
    assert second == first | {"duplicate": True}
    assert third["error"]["code"] == "id_reused"


async def test_a_header_id_is_refused_for_lines(gateway: Gateway) -> None:
    async with gateway.api() as http:
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "a"}
        response = await http.post("/v1/publish", content=line(1), headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")


async def test_a_token_that_expires_meanwhile_publishes_no_more(gateway: Gateway) -> None:
    credential = token("ann", publish=["topic:*"], expires_in=1)
    async with asyncio.timeout(60), exchange(gateway, credential) as post:
        answers = post.answers()
        await post.send(line(1))
        assert "results" in await anext(answers)
        code = None
        while code is None:
            await asyncio.sleep(0.1)
            await post.send(line(2))
            code = (await anext(answers)).get("error", {}).get("code")
        assert code == "token_expired"


async def test_a_token_that_is_revoked_meanwhile_publishes_no_more(gateway: Gateway) -> None:
    now = int(time.time())
    async with asyncio.timeout(60), exchange(gateway, token("rob", publish=["topic:*"], iat=now - 1)) as post:
        answers = post.answers()
        await post.send(line(1))
        assert "results" in await anext(answers)
        async with gateway.api() as http:
            (await http.post("/v1/disconnect", json={"user": "rob", "revoke_before": now})).raise_for_status()
        code = None
        while code is None:
            await post.send(line(2))
            code = (await anext(answers)).get("error", {}).get("code")
        assert code == "unauthorised"


async def test_who_does_not_read_the_answers_is_cut_off(gateway: Gateway) -> None:
    async with asyncio.timeout(60), exchange(gateway, receive_buffer=4096) as post:
        with pytest.raises(ConnectionError):  # once the gateway has waited for its reader long enough
            await post.write(itertools.repeat(line(1) * 500))
    async with gateway.api() as http:
        assert (await http.get("/livez")).status_code == 200
    assert not gateway.complaints()


async def test_a_body_that_stops_coming_is_not_waited_for_without_end(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
                 b"Authorization: Bearer %b\r\n\r\n{" % API_KEY.encode())  # fmt: skip
    async with asyncio.timeout(30):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_an_idle_stream_does_not_keep_a_gateway_from_ending() -> None:
    async with Gateway() as gateway, exchange(gateway) as post:
        await post.send(line(1))
        answers = post.answers()
        assert (await anext(answers))["line"] == 1
        gateway.signal(signal.SIGTERM)
        async with asyncio.timeout(8):
            assert [answer async for answer in answers] == []
        await asyncio.to_thread(gateway.process.wait, 8)
        assert gateway.stop() == 0
        assert not gateway.complaints()


async def test_an_ordered_stream_keeps_back_what_follows_a_line_that_may_pass_later() -> None:
    lines = [json.dumps({"channel": f"topic:{name}", "data": n, "id": f"{name}{n}"}).encode()
             for n in range(3) for name in "ab"]  # fmt: skip
    both = json.dumps({"channels": ["topic:a", "topic:c"], "data": 3}).encode()
    also = json.dumps({"channel": "topic:c", "data": 4}).encode()
    async with Gateway(idempotency_bytes="500") as gateway:  # room for one id
        async with gateway.api() as http:
            http.headers["Content-Type"] = "application/x-ndjson"
            answer = await http.post("/v1/publish?ordered=true", content=b"\n".join([*lines, both, also]))
            wrong = await http.post("/v1/publish?ordered=maybe", content=b"")
        assert (wrong.status_code, wrong.json()["code"]) == (400, "bad_request")
        told = []
        for each in answer.text.splitlines():
            result = json.loads(each)
            error = result.get("error") or result["results"][0].get("error", {})
            told.append((error.get("code"), error.get("status")))
        # topic:b had no room for its first id, so nothing else of it passed; topic:a's second had none.
        full, held = ("ids_full", 503), ("unavailable", 503)
        assert told == [(None, None), full, full, held, held, held, held, held]
        with gateway.http() as http:
            channels = ("topic:a", "topic:b", "topic:c")
            found = [http.get("/v1/history", params={"channel": c}).json()["messages"] for c in channels]
        assert [[message["data"] for message in messages] for messages in found] == [[0], [], []]
