"""`gateway.http`: refusals as problem+json, bodies within their limits, streams that cut off who does not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive

from gateway.errors import Problem
from gateway.http import Stream, content_type, problem_response, read_body


def request(*chunks: bytes, **headers: str) -> Request:
    events = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    left = iter([*events, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(left)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": named}, receive)


def test_a_refusal_is_problem_json_that_no_cache_keeps() -> None:
    response = problem_response(Problem("bad_event", "event must have 1 to 200 characters", field="event"))
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert "retry-after" not in response.headers
    assert json.loads(bytes(response.body)) == {
        "type": "about:blank", "title": "The event name is malformed", "status": 400, "code": "bad_event",
        "detail": "event must have 1 to 200 characters", "field": "event",
    }  # fmt: skip


@pytest.mark.parametrize(("code", "after", "header"), [
    ("rate_limited", None, "1"), ("rate_limited", 0.2, "1"), ("rate_limited", 2.0, "2"), ("unavailable", 2.1, "3"),
])  # fmt: skip
def test_429_and_503_say_when_to_come_back_in_whole_seconds(code: str, after: float | None, header: str) -> None:
    assert problem_response(Problem(code, "Later", retry_after=after)).headers["retry-after"] == header


def test_401_names_the_scheme() -> None:
    assert problem_response(Problem("unauthorised", "No")).headers["www-authenticate"] == "Bearer"


async def test_a_body_is_read_up_to_its_limit() -> None:
    assert await read_body(request(b"12", b"", b"345"), 5, 1) == b"12345"
    for refused in (request(b"12", b"3456"), request(content_length="6"), request(content_length="9" * 5000)):
        with pytest.raises(Problem) as caught:
            await read_body(refused, 5, 1)
        assert (caught.value.code, caught.value.facts) == ("too_large", {"limit": 5})


async def test_a_body_that_never_comes_is_not_waited_for_forever() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    with pytest.raises(Problem, match=r"within 0\.01 s") as caught:
        await read_body(Request({"type": "http", "method": "POST", "headers": []}, receive), 5, 0.01)
    assert caught.value.kind.status == 408


def test_content_types_are_compared_without_parameters() -> None:
    assert content_type(request(content_type="Application/JSON; charset=utf-8")) == "application/json"
    assert content_type(request()) == "application/json"
    with pytest.raises(Problem) as caught:
        content_type(request(content_encoding="gzip"))
    assert caught.value.kind.status == 415


class Endless(Stream):
    closed = False

    async def pieces(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            self.closed = True


@pytest.mark.parametrize("extended", [True, False])
async def test_who_takes_nothing_is_cut_off(extended: bool) -> None:
    sent: list[Message] = []
    gone = asyncio.Event()

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 10:
            await gone.wait()

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http"}
    if extended:
        scope["extensions"] = {"ringcast.abort": gone.set}
    stream = Endless(0.05, "text/plain")
    await asyncio.wait_for(stream({**scope}, receive, send), 5)
    assert stream.closed
    assert sent[-1]["more_body"]  # the body was never ended: nobody may take it for whole
    assert gone.is_set() == extended
