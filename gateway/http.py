"""What every HTTP route shares: who asks, what the request holds, and how a refusal is told (RFC 9457)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.auth import Authenticator
from gateway.credentials import credentials_of
from gateway.errors import Problem
from gateway.head import Head
from gateway.identity import Identity

JSON = "application/json"
NDJSON = "application/x-ndjson"
encode = msgspec.json.Encoder().encode


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that refuses a request: problem+json; 429 and 503 say when to come back, 401 how to log in."""
    response = Response(encode(problem.as_json()), problem.kind.status, headers, "application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    if problem.kind.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after or 0)))
    elif problem.kind.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def json_response(body: Any) -> Response:
    """A 200 that no cache keeps."""
    return Response(encode(body), headers={"Cache-Control": "no-store"}, media_type=JSON)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    request.app.state.node.metrics.refusals[error.code] += 1
    return problem_response(error)


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        problem = Problem("not_found", f"{request.url.path} is no address of this gateway: /openapi.json has them all")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        problem = Problem("method_not_allowed", f"{request.url.path} does not take {request.method} but {allowed}")
    else:
        problem = Problem("bad_request" if error.status_code < 500 else "server_error", error.detail)
    return problem_response(problem, error.headers)


async def _fail(_: Request, __: Exception) -> Response:
    return problem_response(Problem("server_error", "The gateway failed on this request; its log says how"))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


# For Starlette's `exception_handlers`. The last is told of everything unforeseen, which then reaches the server's log.
exception_handlers: dict[Any, Any] = {
    Problem: _refuse, HTTPException: _refuse_route, ClientDisconnect: _gone, Exception: _fail,
}  # fmt: skip


async def identify(request: Request, auth: Authenticator) -> Identity:
    """Who asks; counts the request of its address first.

    Raises Problem: `rate_limited`, `unauthorised` also where nothing is presented, and the others of `authenticate`.
    """
    return await of_head(Head.of(request.scope), auth)


async def of_head(head: Head, auth: Authenticator) -> Identity:
    """The same of whoever sent this head."""
    found = begin_of_head(head, auth)
    return found if isinstance(found, Identity) else await found


def begin_of_head(head: Head, auth: Authenticator) -> Identity | Awaitable[Identity]:
    """The same, at once where nobody else has to be asked for it."""
    credentials = credentials_of(head, auth.limits)
    auth.limits.request(credentials.address)
    found = auth.begin(credentials)
    if found is None:
        raise nobody()
    return found


def nobody() -> Problem:
    """The refusal of a request that says nothing of who asks."""
    return Problem("unauthorised", "Present an API key or a token as `Authorization: Bearer ...`")


def content_type(request: Request) -> str:
    """The media type without parameters; JSON when the request names none. Raises Problem for an encoded body."""
    return media_type(request.headers)


def media_type(fields: Mapping[str, str]) -> str:
    """The same of the fields of a head, by lower-case name."""
    if "content-encoding" in fields and fields["content-encoding"].lower() != "identity":
        raise Problem("unsupported_media_type", "The body must not be compressed: leave Content-Encoding out")
    return fields.get("content-type", JSON).partition(";")[0].strip().lower()


def flag(query: Mapping[str, str], name: str) -> bool:
    """A parameter of the URL that is true or false, or not there. Raises Problem."""
    value = query.get(name, "false")
    if value not in ("true", "false"):
        raise Problem("bad_request", f"{name} is true or false")
    return value == "true"


async def read_body(request: Request, limit: int, within: float) -> bytes:
    """The body of at most `limit` bytes, all of which must arrive `within` seconds.

    Raises Problem: `too_large`, before anything is read where the length is announced, and `request_timeout`.
    """
    return await arrived(request.receive, request.headers.get("content-length", ""), limit, within)


async def arrived(receive: Receive, announced: str, limit: int, within: float) -> bytes:
    """The same of what an application receives. Raises ClientDisconnect, too."""
    if announced.isdecimal() and (len(announced) > 15 or int(announced) > limit):
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(within):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = event.get("body", b"")
                if len(body) + len(chunk) > limit:
                    raise _too_large(limit)
                body += chunk
                if not event.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise Problem("request_timeout", f"The body did not arrive within {within:g} s: send it again") from error


def _too_large(limit: int) -> Problem:
    return Problem("too_large", f"The body has more than the {limit} bytes that are taken: split it", limit=limit)


class Stream(Response):
    """A 200 whose body is made while it is sent, never faster than its reader takes it.

    A reader that takes nothing for `stuck_after` seconds is cut off. `pieces` is given the request's `receive`, for
    those that answer while the body still arrives; nothing is sent before the first piece.
    """

    def __init__(self, stuck_after: float, media_type: str) -> None:
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._stuck_after = stuck_after

    def pieces(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head: Message | None = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            async with aclosing(self.pieces(receive)) as pieces:
                async for piece in pieces:
                    async with asyncio.timeout(self._stuck_after):
                        if head is not None:
                            await send(head)
                            head = None
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
            if head is not None:
                await send(head)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            await _cut(scope, receive)


async def _cut(scope: Scope, receive: Receive) -> None:
    """End the connection at once. To close it would wait for the reader to take what was sent already."""
    abort = scope.get("extensions", {}).get("ringcast.abort")
    if abort is not None:  # else returning without an end of the body is all an ASGI application can do
        abort()
        while (await receive())["type"] != "http.disconnect":
            pass
