"""Polling: each request a short session that answers with what there is, or waits for the first of it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.credentials import address_of
from gateway.errors import ENDS, KINDS, Problem
from gateway.head import Head
from gateway.message import Control, Message, encode_cursor
from gateway.node import Node
from gateway.session import Ask, Calls, Item, Session
from gateway.transports.asks import URL_CURSOR
from gateway.transports.pace import pace
from gateway.transports.request import asked_by
from gateway.transports.wire import connection

RESPONSE = 1 << 20  # bytes of messages in one answer; `more` says that there are others


async def endpoint(request: Request) -> Response:
    """Answer a poll: an idempotent read, so two at once with one cursor get the same."""
    node: Node = request.app.state.node
    identity, wanted, wishes = await asked_by(request, node, "poll")
    ready = asyncio.Event()
    session = node.session(identity, Calls(ready.set), welcome=False, transport="poll")
    session.unseen = wanted.wait == 0  # somebody who waits is there; one who looks in was
    with connection(node, "poll", address_of(Head.of(request.scope), node.auth.limits)):
        try:
            await node.open(session, wishes)
            waits = all(wish.since is not None for wish in wishes) and wanted.wait > 0
            await _wait(node, request, session, ready, min(wanted.wait, node.settings.poll_wait) if waits else 0.0)
            if session.closing is not None:
                raise _ended(session)
            return _answer(node, request, session, wishes)
        finally:
            node.leave(session)


async def _wait(node: Node, request: Request, session: Session, ready: asyncio.Event, wait: float) -> None:
    """Until every channel is decided, and then until there is something, the time is over or the client has gone."""
    loop = asyncio.get_running_loop()
    gone = asyncio.ensure_future(_gone(request))
    try:
        deadline = loop.time() + node.settings.open_within
        while session.opening is not None and session.closing is None and not gone.done():
            if not await _until(ready, gone, deadline):
                raise Problem("unavailable", "The store does not answer: try again soon", retry_after=2)
        deadline = loop.time() + min(wait, session.tell_every)
        if session.expires_at is not None:
            deadline = min(deadline, session.expires_at)
        while not session.outbox and not gone.done() and wait > 0:
            if not await _until(ready, gone, min(deadline, session.leave_at or deadline)):
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


def _ended(session: Session) -> Problem:
    """What a backend ended the session with, by its goodbye; what else it holds is for the next poll."""
    code = next(code for code in ENDS if KINDS[code].close == session.closing)
    hints = [goodbye["hint"] for goodbye in _told(list(session.outbox), "goodbye")]
    hints.append(KINDS[code].title)  # for where the hub has wanted the room of what was queued
    return Problem(code, hints[0], retry_after=1 if KINDS[code].status == 503 else None)


def _answer(node: Node, request: Request, session: Session, wishes: list[Ask]) -> Response:
    items = take(session)
    cursor = encode_cursor(session.positions())
    entries = session.entries or {}
    asked = {wish.channel for wish in wishes}
    unasked = [{"type": "subscribed", **entry} for name, entry in entries.items() if name not in asked]
    told_all = all(wish.since is not None for wish in wishes) and not unasked
    snapshots = [entry["snapshot"] for entry in entries.values() if "snapshot" in entry]
    headers = {
        "Cache-Control": "no-store", "Ringcast-Poll-Interval": f"{node.settings.poll_interval:g}",
        "Ringcast-Node": node.settings.node,
    }  # fmt: skip
    soon, over = pace(session.channels, snapshots, items)
    if soon is not None and not session.outbox and not session.behind:
        headers["Ringcast-Poll-Interval"] = f"{max(soon, node.settings.poll_interval):g}"
    placement = node.placement(session.identity)
    for name, value in placement.items():  # what a welcome says; in headers, for a 204 has nothing else
        if value is not None:
            headers[f"Ringcast-{name.title()}"] = str(value)
    if node.admission.closed:
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
        "resets": _told(items, "reset"),
    }
    if subscribed := unasked + _told(items, "subscribed"):
        body["subscribed"] = subscribed
    if unsubscribed := _told(items, "unsubscribed"):
        body["unsubscribed"] = unsubscribed
    if snapshots:
        body["snapshot"] = [message for snapshot in snapshots for message in snapshot]
    body["cursor"] = cursor
    body["more"] = bool(session.outbox or session.behind)
    if over and not body["more"]:
        body["end"] = True
    answer = msgspec.json.encode(body)
    node.metrics.delivered_bytes += len(answer)
    return Response(answer, media_type="application/json", headers=headers)


def take(session: Session) -> list[Item]:
    """What one answer holds. It cannot tell that a message came before a reset of its channel: the next one does."""
    size, seen = 0, set[str]()
    for item in session.outbox:
        if isinstance(item, Message):
            seen.add(item.channel)
        elif item.kind == "reset" and item.channel in seen:
            break
        size += item.size
    return session.take(min(size, RESPONSE))


def _told(items: list[Item], kind: str) -> list[dict[str, Any]]:
    return [item.body for item in items if isinstance(item, Control) and item.kind == kind]
