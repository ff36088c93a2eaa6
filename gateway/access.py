"""The access log: a line for each request that was answered, each connection that ended, each that was refused.

It holds no query, and of a path only the route that it took, for the rest is the client's to write.
"""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.credentials import address_of
from gateway.errors import (
    BAD_REQUEST,
    DRAINING,
    FORBIDDEN,
    FULL,
    RATE_LIMITED,
    SERVER_ERROR,
    TOKEN_EXPIRED,
    TOO_LARGE,
    TOO_SLOW,
    UNAUTHORISED,
    Problem,
)
from gateway.head import Head
from gateway.limits import Limits
from gateway.session import Session

log = logging.getLogger("ringcast.access")

LASTING = ("websocket", "sse")  # a poll is a request
REASONS = {
    UNAUTHORISED: "unauthorised", FORBIDDEN: "forbidden", BAD_REQUEST: "bad_request", TOO_LARGE: "too_large",
    DRAINING: "draining", SERVER_ERROR: "unavailable", TOO_SLOW: "too_slow", RATE_LIMITED: "rate_limited", FULL: "full",
    TOKEN_EXPIRED: "token_expired",
}  # fmt: skip


def switch(on: bool) -> None:
    """For the process: the log is one."""
    log.setLevel(logging.INFO if on else logging.WARNING)


def ended(session: Session) -> None:
    """A client's connection is over: ended by the gateway, by `code`, or `left` by its client."""
    if session.transport in LASTING and log.isEnabledFor(logging.INFO):
        code = session.closing
        log.info("a connection ended", extra={
            "session": session.id, "transport": session.transport, "code": code,
            "reason": "left" if code is None else REASONS.get(code),
            "seconds": round(asyncio.get_running_loop().time() - session.opened_at, 3),
        })  # fmt: skip


def refused(transport: str, address: str, problem: Problem) -> None:
    """A client was told on its way in that it may not, or not now."""
    if log.isEnabledFor(logging.INFO):
        log.info("a connection was refused", extra={
            "transport": transport, "code": problem.kind.close, "reason": problem.code, "address": address,
        })  # fmt: skip


class AccessLog:
    """ASGI middleware: a line for each HTTP request once it is answered, but for streams, which tell of their end."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def sent(event: Message) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
            await send(event)

        try:
            await self._app(scope, receive, sent)
        finally:
            path = _route(scope)
            if status != 200 or path != "/v1/sse":
                log.info("a request was answered" if status else "a request was not answered", extra={
                    "method": scope["method"] if path else None, "path": path, "status": status or None,
                    "seconds": round(time.perf_counter() - began, 3),
                    "address": address_of(Head.of(scope), self._limits),
                })  # fmt: skip


def _route(scope: Scope) -> str | None:
    """The route that a request took, with the names of its parameters for what they were."""
    for route in scope["app"].routes:
        if isinstance(route, Route) and route.path_regex.match(scope["path"]):
            return route.path.replace(":path}", "}")
    return "/static" if scope["path"].startswith("/static/") else None
