"""Server-sent events (WHATWG HTML, 9.2) through sse-starlette: every frame an event, positions in checkpoints."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import ExitStack

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.auth import Identity
from gateway.credentials import address_of
from gateway.errors import Problem, reconnects
from gateway.message import Control, Message, encode_cursor
from gateway.node import Node
from gateway.session import Ask, Session
from gateway.transports.request import asked_by
from gateway.transports.wire import abort_of, drained_of

AppStatus.enable_automatic_graceful_drain = False  # the node ends its streams itself, with a goodbye

CHECKPOINT = 1.0  # seconds between two checkpoints of a busy stream
RETRY = 1000  # milliseconds an EventSource waits before it comes back
HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}


async def endpoint(request: Request) -> Response:
    """Begin a stream. Refusals have a real status; while draining or full it is 200 with `retry:` and a goodbye."""
    node: Node = request.app.state.node
    identity, _, wishes = await asked_by(request, node)
    stream = Stream(node, address_of(request, node.auth.limits), identity)
    try:
        await stream.open(wishes)
    except Problem as problem:
        if problem.code not in ("draining", "full"):
            raise
        node.metrics.refusals[problem.code] += 1
        return EventSourceResponse(_turned_away(problem), headers=HEADERS, ping=0, sep="\n")
    return stream


async def _turned_away(problem: Problem) -> AsyncIterator[bytes]:
    wait = round((problem.retry_after or 1) * 1000)
    code = problem.kind.close
    goodbye = Control("goodbye", code=code, reconnect=reconnects(code), after_ms=wait, hint=problem.detail)
    yield b"retry: %d\n\n%b" % (wait, goodbye.sse)


class Stream(EventSourceResponse):
    """One subscriber's stream, from its admission to its end."""

    def __init__(self, node: Node, address: str, identity: Identity) -> None:
        super().__init__(self._chunks(), headers=HEADERS, ping=0, sep="\n")
        self.node = node
        self.session: Session = node.session(identity, self._wake, welcome=True)
        self._ready = asyncio.Event()
        self._held = ExitStack()
        self._held.callback(node.leave, self.session)
        self._address = address
        self._told_at = 0.0
        self._untold = True  # whether the position has moved since the last checkpoint

    async def open(self, wishes: list[Ask]) -> None:
        """Take a place on the node and subscribe. Raises Problem, having given up the place."""
        try:
            self._held.enter_context(self.node.connection("sse", self._address))
            await self.node.open(self.session, wishes)
        except BaseException:
            self._held.close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.session.on_abort = abort_of(scope, self.session.on_abort)
        self._drained = drained_of(scope)
        with self._held:
            await super().__call__(scope, receive, send)

    def _wake(self) -> None:
        self._ready.set()

    async def _chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the stream, everything that is ready in one piece."""
        yield b"retry: %d\n\n" % RETRY
        while self.session.closing is None or self.session.outbox:
            await self._wait()
            while chunk := self._chunk():
                yield chunk
                await self._drained()
                self.node.metrics.delivered_bytes += len(chunk)
                self.node.sent(self.session)
            self.node.sent(self.session)

    async def _wait(self) -> None:
        """Until the session has something, or a checkpoint is due."""
        due = self._told_at + CHECKPOINT if self._untold and self.session.opening is None else None
        try:
            async with asyncio.timeout_at(due):
                await self._ready.wait()
        except TimeoutError:
            pass
        self._ready.clear()

    def _chunk(self) -> bytes:
        session = self.session
        items = session.take()
        parts = [item.sse for item in items]
        now, due = asyncio.get_running_loop().time(), False
        for item in items:
            if isinstance(item, Message):
                self._untold = True
            elif item.kind != "ping" or "cursor" in item.body:
                self._untold = due = True  # positions were told: say so in the one way an EventSource keeps
                if item.kind == "goodbye":
                    parts.append(b"retry: %d\n\n" % random.randint(0, 2 * RETRY))  # noqa: S311 - spreads, hides nothing
        if self._untold and session.opening is None and (due or now >= self._told_at + CHECKPOINT):
            self._told_at, self._untold = now, False
            parts.append(b"id: %b\n\n" % encode_cursor(session.positions()).encode())
        return b"".join(parts)
