"""A publish is answered below ASGI as it is through it, and whatever is odd, late or behind it as before."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, token

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
KEYED = b'{"channel":"topic:a","key":"k","data":1}'
GOOD = b'{"channel":"topic:a","data":1,"id":"one"}'


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway(requests_per_second=1_000_000) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def through_asgi() -> Iterator[Gateway]:
    with Gateway(native=False) as gateway:
        yield gateway


def request(body: bytes, *lines: str, key: str | None = API_KEY, path: str = "/v1/publish") -> bytes:
    said = [f"Authorization: Bearer {key}"] if key is not None else []
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *said, *lines, "", ""]
    return "\r\n".join(head).encode() + body


def publish(n: int) -> bytes:
    return request(b'{"channel":"topic:native","data":%d}' % n)


@asynccontextmanager
async def connected(gateway: Gateway, limit: int = 1 << 16) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=limit)
    try:
        async with asyncio.timeout(30):
            yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """The status line, the fields and the body of the next answer."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    fields = dict(line.split(": ", 1) for line in lines)
    return status, fields, await reader.readexactly(int(fields["content-length"]))


ODD = {
    "a publish": request(GOOD),
    "a repeat": request(GOOD) * 2,
    "the same id with another body": request(b'{"channel":"topic:a","data":2,"id":"one"}'),
    "several targets": request(b'{"channels":["topic:a","topic:b","nothing"],"data":1,"id":"three"}'),
    "an id in the head": request(b'{"channel":"topic:a","data":1}', "Idempotency-Key: two"),
    "two ids in the head": request(b'{"channel":"topic:a","data":1}', "Idempotency-Key: a", "Idempotency-Key: b"),
    "ids that differ": request(GOOD, "Idempotency-Key: two"),
    "a key that is not allowed": request(KEYED),
    "no JSON": request(b"{"),
    "no body": request(b""),
    "nobody": request(GOOD, key=None),
    "a wrong key": request(GOOD, key="wrong"),
    "no grant": request(GOOD, key=token("anna")),
    "a reserved channel": request(b'{"channel":"jobs:a","data":1}'),
    "another type": request(GOOD, "Content-Type: text/plain"),
    "a type with parameters": request(GOOD, "Content-Type: application/json; charset=utf-8"),
    "a compressed body": request(GOOD, "Content-Encoding: gzip"),
    "a CloudEvent": request(b"1", "ce-specversion: 1.0", "ce-id: 9", "ce-source: s", "ce-type: t",
                            "ce-subject: topic:a"),
    "chunks": (f"POST /v1/publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nTransfer-Encoding: chunked"
               "\r\n\r\n29\r\n").encode() + GOOD + b"\r\n0\r\n\r\n",
    "a page of elsewhere": request(GOOD, "Origin: https://elsewhere.example"),
    "a ticket that is none": request(GOOD, path="/v1/publish?ticket=none"),
    "the last request": request(GOOD, "Connection: close"),
    "more than is taken": request(b'"%b"' % (b"x" * (2 << 20))),
    "another method": b"GET /v1/publish HTTP/1.1\r\nHost: localhost\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD.keys())
async def test_an_answer_is_the_same_on_both_ways(gateway: Gateway, through_asgi: Gateway, sent: bytes) -> None:
    answers = []
    for each in (gateway, through_asgi):
        async with connected(each) as (reader, writer):
            writer.write(sent)
            status, fields, body = await answer(reader)
            fields.pop("date")
            answers.append((status, fields, re.sub(rb'"offset":\d+', b"", body)))
    assert answers[0] == answers[1]


async def test_requests_on_one_connection_are_answered_in_their_order(gateway: Gateway) -> None:
    """However they are mixed, and however they are cut."""
    sent = b"".join((publish(1), publish(2), LIVE, publish(3), request(b"{"), publish(4), LIVE, LIVE, publish(5)))
    wanted = [b"results", b"results", b"", b"results", b"bad_json", b"results", b"", b"", b"results"]
    for size in (len(sent), 7, 100):
        async with connected(gateway) as (reader, writer):
            for begin in range(0, len(sent), size):
                writer.write(sent[begin : begin + size])
                await writer.drain()
                await asyncio.sleep(0)
            for expected in wanted:
                _, _, body = await answer(reader)
                assert expected in body


async def test_a_body_that_comes_late_is_waited_for(gateway: Gateway) -> None:
    async with connected(gateway) as (reader, writer):
        whole = publish(6)
        for part in (whole[:9], whole[9:40], whole[40:-3], whole[-3:]):
            writer.write(part)
            await asyncio.sleep(0.4)  # more than a second in all, after which it is another's to wait for
        status, _, _ = await answer(reader)
        assert status == "HTTP/1.1 200 OK"


async def test_a_publisher_that_does_not_read_is_not_read_either(gateway: Gateway) -> None:
    async with connected(gateway) as (reader, writer):
        writer.transport.set_write_buffer_limits(high=0)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        for n in itertools.count():
            writer.write(publish(n) * 100)
            sent += 100
            try:
                await asyncio.wait_for(writer.drain(), 1)
            except TimeoutError:
                break
            assert sent < 200_000, "it reads on without end"
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(sent):
            assert b"results" in (await answer(reader))[2]
        writer.write(LIVE)
        assert (await answer(reader))[0] == "HTTP/1.1 200 OK"


async def test_a_node_that_leaves_keeps_no_publisher() -> None:
    async with Gateway(drain="1s") as gateway, connected(gateway) as (reader, writer):
        writer.write(publish(1))
        assert "connection" not in (await answer(reader))[1]
        gateway.process.terminate()
        assert await reader.read() == b""
        assert await asyncio.to_thread(gateway.stop) == 0


async def test_an_acknowledged_publish_is_counted_and_stored(gateway: Gateway) -> None:
    def stored() -> float:
        return gateway.metric("ringcast_published_total", result="stored")

    before = stored()
    async with connected(gateway) as (reader, writer):
        writer.write(request(b'{"channel":"topic:counted","data":{"n":1}}') + request(b"{"))
        (result,) = json.loads((await answer(reader))[2])["results"]
        await answer(reader)
    assert stored() == before + 1
    with gateway.http() as http:
        (message,) = http.get("/v1/history", params={"channel": "topic:counted"}).json()["messages"]
    assert (message["offset"], message["data"]) == (result["offset"], {"n": 1})
