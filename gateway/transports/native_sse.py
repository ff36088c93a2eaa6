"""Server-sent events below ASGI: the request answered from its head, then a stream that lasts as long as it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from operator import attrgetter

from starlette.responses import Response

from gateway import access
from gateway.auth import Credentials, Identity
from gateway.credentials import credentials_of
from gateway.errors import LATER, Problem
from gateway.head import Head
from gateway.http import nobody, problem_response
from gateway.message import Message
from gateway.node import LAST_WORDS
from gateway.session import Item, Session
from gateway.transports.asks import URL_CURSOR, from_query
from gateway.transports.events import BEGIN, HEADERS, checkpoint_at, chunk, turned_away
from gateway.transports.native import Line, Native
from gateway.transports.request import wishes_of

_STREAM = Response(headers=HEADERS, media_type="text/event-stream")
del _STREAM.headers["Content-Length"]


def is_stream(head: Head) -> bool:
    """Whether it is a request that this file answers: one without a body."""
    return head.method == "GET" and not ("content-length" in head.fields or "transfer-encoding" in head.fields)


class SseLine(Line):
    """One stream, from its request to its end. What a client sends behind its request is not read."""

    __slots__ = ("head", "told_at", "untold")

    kind = "sse"
    ready = attrgetter("sse_frame")

    def __init__(self, native: Native, transport: asyncio.Transport, head: Head) -> None:
        credentials = credentials_of(head, native.node.auth.limits)
        super().__init__(native, transport, credentials.address)
        self.head: Head | None = head  # until it has been answered
        self.told_at, self.untold = 0.0, True
        self._begin(head, credentials)

    # ---------------------------------------------------------------- opening

    def _begin(self, head: Head, credentials: Credentials) -> None:
        auth = self.node.auth
        try:
            auth.limits.request(self.address)
            self.node.admission.check(self.kind)
            found = auth.begin(credentials)
            if isinstance(found, Awaitable):
                self.task = asyncio.create_task(self._admit_slowly(found, head), name="sse login")
            else:
                self._admit(found, head)
        except Problem as problem:
            self.refuse(problem)

    async def _admit_slowly(self, found: Awaitable[Identity], head: Head) -> None:
        try:
            self._admit(await found, head)
        except Problem as problem:
            self.refuse(problem)

    def _admit(self, identity: Identity | None, head: Head) -> None:
        """Raises Problem."""
        if identity is None:
            raise nobody()
        wanted = from_query(head.query, head.query_string, head.fields.get("last-event-id"))
        wishes = wishes_of(wanted, identity, self.node.settings, URL_CURSOR)
        self.take_place()
        self.enter(identity, wishes)

    def _opened(self) -> None:
        self.flush()

    def refuse(self, problem: Problem) -> None:
        """Answer with the problem's status; where it may come back later with a stream that says when to come back."""
        self.node.metrics.refusals[problem.code] += 1
        access.refused(self.kind, self.address, problem)
        self.leave()
        head = self.head
        assert head is not None  # nothing of a stream was sent
        if problem.code in LATER:
            self.transport.write(self.native.begin(head, _STREAM) + turned_away(problem))
        else:
            self.transport.write(self.native.whole(head, problem_response(problem)))
        self._close()

    # ---------------------------------------------------------------- out

    @staticmethod
    def form(item: Item) -> bytes | None:
        return item.sse if isinstance(item, Message) else None

    def encode(self, session: Session, items: list[Item]) -> bytes:
        # The first is as old as the session, whose time is kept anyway.
        now = asyncio.get_running_loop().time() if self.head is None else session.opened_at
        data = chunk(self, session, items, now)
        due = checkpoint_at(self, session)
        if due is None or session.tell_at is None:  # else it comes up soon enough
            session.tell_at = due
            if due is not None:
                self.node.schedule(session)
        self.plain_until = session.tell_at or 0.0
        if self.head is not None:
            data = self.native.begin(self.head, _STREAM) + BEGIN + data
            self.head = None
        return data

    def finish(self, code: int) -> None:
        self._close()

    def _close(self) -> None:
        self.expect(LAST_WORDS, self.abort)
        self.transport.close()
