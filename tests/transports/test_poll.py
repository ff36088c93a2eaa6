"""What only polls have: statuses, headers, waiting, and pages."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.support.clients import decode_cursor, encode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.publishing import publish

ANN = token("ann", ["*"])
OWN = {"user:ann", "jobs:ann"}


async def poll(http: httpx.AsyncClient, channel: str, cursor: str | None = None, **wanted: Any) -> httpx.Response:
    """One poll; `wait` is 0 unless told."""
    headers = wanted.pop("headers", None)
    params: dict[str, Any] = {"channels": channel, "wait": 0} | ({"cursor": cursor} if cursor else {}) | wanted
    return await http.get("/v1/poll", params=params, headers=headers)


async def position(http: httpx.AsyncClient, channel: str) -> str:
    cursor: str = (await poll(http, channel)).raise_for_status().json()["cursor"]
    return cursor


async def test_one_without_a_position_is_answered_at_once_with_one(gateway: Gateway) -> None:
    """However long it would wait: from its first moment on, nothing is missed."""
    async with gateway.api(ANN) as http:
        began = time.monotonic()
        answer = await poll(http, "topic:first", wait=25)
        assert time.monotonic() - began < 5
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"messages", "resets", "cursor", "more"}
    assert (body["messages"], body["resets"], body["more"]) == ([], [], False)
    assert set(decode_cursor(body["cursor"])) == {"topic:first", *OWN}


async def test_one_that_lacks_the_position_of_one_channel_is_answered_at_once(gateway: Gateway) -> None:
    async with gateway.api(ANN) as http:
        cursor = await position(http, "topic:known")
        began = time.monotonic()
        answer = await poll(http, "topic:known,topic:unknown", cursor, wait=25)
        assert time.monotonic() - began < 5
    assert answer.status_code == 200
    assert set(decode_cursor(answer.json()["cursor"])) == {"topic:known", "topic:unknown", *OWN}


async def test_messages_come_with_a_cursor_behind_them(gateway: Gateway) -> None:
    async with gateway.api(ANN) as http:
        cursor = await position(http, "topic:new")
        offsets = await publish(gateway, "topic:new", ["a", "b"])
        answer = await poll(http, "topic:new", cursor)
        body = answer.raise_for_status().json()
        assert answer.status_code == 200
        assert [message["offset"] for message in body["messages"]] == offsets
        assert {message["type"] for message in body["messages"]} == {"message"}
        assert decode_cursor(body["cursor"])["topic:new"] == offsets[-1]
        assert answer.headers["Ringcast-Cursor"] == body["cursor"]
        assert answer.headers["ETag"] == f'"{body["cursor"]}"'
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Type"] == "application/json"
        assert float(answer.headers["Ringcast-Poll-Interval"]) == 0


async def test_nothing_new_is_a_204(gateway: Gateway) -> None:
    async with gateway.api(ANN) as http:
        cursor = await position(http, "topic:none")
        answer = await poll(http, "topic:none", cursor)
    assert answer.status_code == 204
    assert answer.content == b""
    assert answer.headers["ETag"] == f'"{answer.headers["Ringcast-Cursor"]}"'
    assert answer.headers["Cache-Control"] == "no-store"


async def test_nothing_new_is_a_304_to_one_that_names_its_cursor(gateway: Gateway) -> None:
    async with gateway.api(ANN) as http:
        cursor = await position(http, "topic:etag")
        answer = await poll(http, "topic:etag", cursor, headers={"If-None-Match": f'"{cursor}"'})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == f'"{cursor}"'
        await publish(gateway, "topic:etag", ["new"])
        answer = await poll(http, "topic:etag", cursor, headers={"If-None-Match": f'"{cursor}"'})
        assert answer.status_code == 200
        assert len(answer.json()["messages"]) == 1


async def test_a_304_moves_on_with_the_position(gateway: Gateway) -> None:
    """Another channel of the partition moved it; an entity tag that is not the newest gets a body."""
    async with gateway.api(ANN) as http:
        cursor = await position(http, "topic:tag")
        answer = await poll(http, "topic:tag", cursor, headers={"If-None-Match": '"another"'})
    assert answer.status_code == 200
    assert answer.json()["messages"] == []


async def test_one_waits_for_the_first_message(gateway: Gateway) -> None:
    async with gateway.api(ANN) as http:
        cursor = await position(http, "topic:wait")
        waiting = asyncio.create_task(poll(http, "topic:wait", cursor, wait=25))
        await gateway.until(lambda: gateway.metric("ringcast_connections", transport="poll") == 1)
        await asyncio.sleep(0.2)
        assert not waiting.done()
        began = time.monotonic()
        offsets = await publish(gateway, "topic:wait", ["now"])
        answer = await waiting
        assert time.monotonic() - began < 5
    assert [message["offset"] for message in answer.json()["messages"]] == offsets


@pytest.mark.parametrize("wait", ["1", "1s", "1000ms"])
async def test_one_waits_as_long_as_it_says(gateway: Gateway, wait: str) -> None:
    async with gateway.api(ANN) as http:
        cursor = await position(http, "topic:wait-for")
        began = time.monotonic()
        answer = await poll(http, "topic:wait-for", cursor, wait=wait)
        assert 0.9 < time.monotonic() - began < 5
    assert answer.status_code == 204


@pytest.mark.parametrize("wait", ["-1", "soon", "nan", "inf", "1e3"])
async def test_a_malformed_wait_is_refused(gateway: Gateway, wait: str) -> None:
    async with gateway.api(ANN) as http:
        answer = await poll(http, "topic:a", wait=wait)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_no_more_is_waited_than_the_setting_allows() -> None:
    with Gateway(poll_wait="1s") as gateway:
        async with gateway.api(ANN) as http:
            cursor = await position(http, "topic:long")
            began = time.monotonic()
            answer = await poll(http, "topic:long", cursor, wait="24h")
            assert time.monotonic() - began < 5
        assert answer.status_code == 204


async def test_much_comes_in_pages(gateway: Gateway) -> None:
    """`more` says that the next one need not wait; each message is in exactly one of them."""
    async with gateway.api(ANN) as http:
        cursor = await position(http, "deep:pages")
        offsets = await publish(gateway, "deep:pages", [{"n": n, "text": "x" * 500} for n in range(5000)])
        found: list[int] = []
        pages, more = 0, True
        while more:
            answer = await poll(http, "deep:pages", cursor, wait=25)
            body = answer.raise_for_status().json()
            assert len(answer.content) < 2 << 20
            assert body["messages"]
            found += [message["offset"] for message in body["messages"]]
            cursor, more, pages = body["cursor"], body["more"], pages + 1
    assert found == offsets
    assert 2 < pages < 100


async def test_polls_with_the_same_cursor_get_the_same(gateway: Gateway) -> None:
    """They are reads: two tabs, or a retry, take nothing from each other."""
    async with gateway.api(ANN) as http:
        cursor = await position(http, "topic:same")
        waiting = [asyncio.create_task(poll(http, "topic:same", cursor, wait=25)) for _ in range(5)]
        await gateway.until(lambda: gateway.metric("ringcast_connections", transport="poll") == 5)
        await publish(gateway, "topic:same", ["for all of them"])
        at_once = [(await task).json()["messages"] for task in waiting]
        later = [(await poll(http, "topic:same", cursor)).json()["messages"] for _ in range(3)]
    assert all(len(messages) == 1 for messages in at_once)
    assert [messages[0] for messages in at_once] == [at_once[0][0]] * 5
    assert later == [at_once[0]] * 3


async def test_a_head_request_has_the_headers_alone(gateway: Gateway) -> None:
    async with gateway.api(ANN) as http:
        cursor = await position(http, "topic:head")
        answer = await http.head("/v1/poll", params={"channels": "topic:head", "cursor": cursor, "wait": 0})
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["ETag"].startswith('"')
        answer = await http.head("/v1/poll", params={"channels": "topic:head"})
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Ringcast-Cursor"]


async def test_a_large_cursor_is_never_a_header(gateway: Gateway) -> None:
    """Proxies drop an answer with a head that large; so it is a 200 with empty lists."""
    channels = [f"topic:large-{n:0100d}" for n in range(50)]
    async with gateway.api(ANN) as http:
        cursor = (await http.post("/v1/poll", json={"channels": channels})).raise_for_status().json()["cursor"]
        assert len(cursor) > 4096
        answer = await http.post("/v1/poll", json={"channels": channels, "cursor": cursor, "wait": 0.5})
    assert answer.status_code == 200
    assert answer.json()["messages"] == []
    assert not {"ETag", "Ringcast-Cursor"} & set(answer.headers)
    assert len(str(answer.headers)) < 2000


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"nonsense", b"\xff", b'{"channels":"topic:a"}', b'{"channel":["topic:a"]}',
     b'{"channels":["topic:a"],"wait":"long"}', b'{"channels":["topic:a"],"wait":-1}',
     b'{"channels":["topic:a"],"snapshot":1}', b'{"channels":[1]}',
     b'{"channels":["topic:a"],"cursor":5}', b"[" * 60_000, b'{"channels":["topic:a"],"wait":1e999}',
     b'{"channels":["\\ud800"]}', b'{"channels":["topic:\\ud800"]}'],
)  # fmt: skip
@pytest.mark.parametrize("path", ["poll", "sse"])
async def test_a_body_that_is_no_object_of_the_parameters_is_refused(gateway: Gateway, path: str, body: bytes) -> None:
    async with gateway.api(ANN) as http:
        answer = await http.post(f"/v1/{path}", content=body)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"]


async def test_resets_come_first(gateway: Gateway) -> None:
    async with gateway.api(ANN) as http:
        offsets = await publish(gateway, "few:reset-poll", range(30))
        body = (await poll(http, "few:reset-poll", encode_cursor({"few:reset-poll": offsets[0]}))).json()
        assert body["resets"] == [
            {"type": "reset", "channel": "few:reset-poll", "reason": "trimmed", "offset": offsets[0]}
        ]
        assert [message["offset"] for message in body["messages"]] == offsets[-10:]
        again = await poll(http, "few:reset-poll", body["cursor"])
        assert again.status_code == 204


async def test_whoever_names_no_channel_and_has_none_is_refused(gateway: Gateway) -> None:
    async with gateway.api() as http:  # an API key has no channels of its own
        answer = await http.get("/v1/poll")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
