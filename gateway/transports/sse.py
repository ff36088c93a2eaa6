"""Server-sent events (WHATWG HTML, 9.2) through sse-starlette: every frame an event, positions in checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.auth import Identity
from gateway.credentials import address_of
from gateway.errors import LATER, Problem
from gateway.head import Head
from gateway.node import Node
from gateway.session import Ask, Calls, Session
from gateway.transports.events import BEGIN, HEADERS, checkpoint_at, chunk, turned_away
from gateway.transports.request import asked_by
from gateway.transports.wire import abort_of, connection, drained_of

AppStatus.enable_automatic_graceful_drain = False  # the node ends its streams itself, with a goodbye


async def endpoint(request: Request) -> Response:
    """Begin a stream. Refusals have a real status; who may come back later gets 200 with `retry:` and a goodbye."""
    node: Node = request.app.state.node
    try:
        identity, _, wishes = await asked_by(request, node, "sse")
        stream = Stream(node, address_of(Head.of(request.scope), node.auth.limits), identity)
        await stream.open(wishes)
    except Problem as problem:
        if problem.code not in LATER:
            raise
        node.metrics.refusals[problem.code] += 1
        return EventSourceResponse(_once(turned_away(problem)), headers=HEADERS, ping=0, sep="\n")
    return stream


async def _once(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk


class Stream(EventSourceResponse):
    """One subscriber's stream, from its admission to its end."""

    def __init__(self, node: Node, address: str, identity: Identity) -> None:
        super().__init__(self._chunks(), headers=HEADERS, ping=0, sep="\n")
        self.node = node
        self._calls = Calls(self._wake)
        self.session: Session = node.session(identity, self._calls, welcome=True, transport="sse")
        self._ready = asyncio.Event()
        self._held = ExitStack()
        self._held.callback(node.leave, self.session)
        self._address = address
        self.told_at, self.untold = 0.0, True

    async def open(self, wishes: list[Ask]) -> None:
        """Take a place on the node and subscribe. Raises Problem, having given up the place."""
        try:
            self._held.enter_context(connection(self.node, "sse", self._address))
            await self.node.open(self.session, wishes)
        except BaseException:
            self._held.close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._calls.abort = abort_of(scope, self._calls.abort)
        self._drained = drained_of(scope)
        with self._held:
            await super().__call__(scope, receive, send)

    def _wake(self) -> None:
        self._ready.set()

    async def _chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the stream, everything that is ready in one piece."""
        yield BEGIN
        while self.session.closing is None or self.session.outbox:
            await self._wait()
            while data := chunk(self, self.session, self.session.take(), asyncio.get_running_loop().time()):
                yield data
                await self._drained()
                self.node.metrics.delivered_bytes += len(data)
                self.node.sent(self.session)
            self.node.sent(self.session)

    async def _wait(self) -> None:
        """Until the session has something, or a checkpoint is due."""
        try:
            async with asyncio.timeout_at(checkpoint_at(self, self.session)):
                await self._ready.wait()
        except TimeoutError:
            pass
        self._ready.clear()
