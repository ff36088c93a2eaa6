"""Polling: each request a short session that answers with what there is, or waits for the first of it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.credentials import address_of
from gateway.errors import Problem
from gateway.message import Message, encode_cursor
from gateway.node import Node
from gateway.session import Session
from gateway.transports.asks import URL_CURSOR
from gateway.transports.request import asked_by

RESPONSE = 1 << 20  # bytes of messages in one answer; `more` says that there are others


async def endpoint(request: Request) -> Response:
    """Answer a poll: an idempotent read, so two at once with one cursor get the same."""
    node: Node = request.app.state.node
    identity, wanted, wishes = await asked_by(request, node)
    ready = asyncio.Event()
    session = node.session(identity, ready.set, welcome=False)
    with node.connection("poll", address_of(request, node.auth.limits)):
        try:
            await node.open(session, wishes)
            waits = all(wish.since is not None for wish in wishes) and wanted.wait > 0
            await _wait(node, request, session, ready, min(wanted.wait, node.settings.poll_wait) if waits else 0.0)
            return _answer(node, request, session, told_all=all(wish.since is not None for wish in wishes))
        finally:
            node.leave(session)


async def _wait(node: Node, request: Request, session: Session, ready: asyncio.Event, wait: float) -> None:
    """Until every channel is decided, and then until there is something, the time is over or the client has gone."""
    loop = asyncio.get_running_loop()
    gone = asyncio.ensure_future(_gone(request))
    try:
        deadline = loop.time() + node.settings.open_within
        while session.opening is not None and not gone.done():
            if not await _until(ready, gone, deadline):
                raise Problem("unavailable", "The store does not answer: try again soon", retry_after=2)
        deadline = loop.time() + min(wait, session.tell_every)
        if session.expires_at is not None:
            deadline = min(deadline, session.expires_at)
        while not session.outbox and not gone.done() and not node.draining and wait > 0:
            if not await _until(ready, gone, deadline):
                return
        # A replay comes page by page: what is behind still may be on its way.
        while session.behind and not session.outbox and not gone.done():
            if not await _until(ready, gone, loop.time() + node.settings.open_within):
                raise Problem("unavailable", "The store does not answer: try again soon", retry_after=2)
    finally:
        gone.cancel()


async def _until(ready: asyncio.Event, gone: asyncio.Future[None], deadline: float) -> bool:
    waiter: asyncio.Future[Any] = asyncio.ensure_future(ready.wait())
    try:
        await asyncio.wait([waiter, gone], timeout=max(0.0, deadline - asyncio.get_running_loop().time()),
                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
    finally:
        waiter.cancel()
    woken = ready.is_set() or gone.done()
    ready.clear()
    return woken


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(node: Node, request: Request, session: Session, told_all: bool) -> Response:
    items = session.take(RESPONSE)
    cursor = encode_cursor(session.positions())
    entries = session.entries or {}
    snapshots = [entry["snapshot"] for entry in entries.values() if "snapshot" in entry]
    headers = {"Cache-Control": "no-store", "Ringcast-Poll-Interval": f"{node.settings.poll_interval:g}"}
    if node.draining:
        headers["Retry-After"] = "1"
    short = len(cursor) <= URL_CURSOR
    if short:
        headers["ETag"] = f'"{cursor}"'
        headers["Ringcast-Cursor"] = cursor
    known = request.headers.get("if-none-match")
    if not items and told_all and short and not session.behind and known in (None, f'"{cursor}"'):
        return Response(status_code=204 if known is None else 304, headers=headers)
    body: dict[str, Any] = {
        "messages": [msgspec.Raw(item.json) for item in items if isinstance(item, Message)],
        "resets": [item.body for item in items if not isinstance(item, Message)],
    }
    if snapshots:
        body["snapshot"] = [message for snapshot in snapshots for message in snapshot]
    body["cursor"] = cursor
    body["more"] = bool(session.outbox or session.behind)
    answer = msgspec.json.encode(body)
    node.metrics.delivered_bytes += len(answer)
    return Response(answer, media_type="application/json", headers=headers)
