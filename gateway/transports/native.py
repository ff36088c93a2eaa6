"""Connections that are taken below ASGI: one slim object each, without a task, a queue or a timer of its own."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from operator import attrgetter
from typing import Any, ClassVar, TypeAlias

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Message

from gateway.auth import Identity
from gateway.errors import Problem
from gateway.head import Head
from gateway.node import Node
from gateway.session import SMALL, Ask, Item, Session
from gateway.transports.cork import Cork

Ready: TypeAlias = "attrgetter[bytes | None]"
Form = Callable[[Item], bytes | None]  # None of what is no message


class Joined:
    """Messages that many a connection is to write in one turn of the loop, put together once for all of those."""

    __slots__ = ("_data", "_form", "_items")

    def __init__(self) -> None:
        self._form: Form | None = None
        self._items: list[Item] = []
        self._data = b""

    def of(self, form: Form, items: list[Item]) -> bytes | None:
        """All of them as they are written; None where one of them is no message."""
        if form is self._form and items == self._items:
            return self._data
        parts = [part for item in items if (part := form(item)) is not None]
        if not parts or len(parts) < len(items):
            return None
        self._form, self._items, self._data = form, items, b"".join(parts)
        return self._data


class Native:
    """What the connections of a process share."""

    def __init__(
        self, node: Node, cors: CORSMiddleware, connections: set[Any], fields: Callable[[], list[tuple[bytes, bytes]]]
    ) -> None:
        """`connections` are those that the server ends, by their `shutdown`; `fields` is what it adds to an answer."""
        self.node = node
        self.metrics = node.metrics
        self.cork = Cork(node.hub, node.metrics)
        self.connections = connections
        # What logs or traces each request is ASGI's, and costs more than what is saved here.
        self.publishes = not (node.settings.access_log or node.settings.tracing)
        self._fields = fields
        self._cors = cors
        self.joined = Joined()

    def added(self) -> list[bytes]:
        """The lines that the server adds to the head of every answer."""
        return [b"%b: %b\r\n" % field for field in self._fields()]

    def whole(self, head: Head, response: Response, *, last: bool = True) -> bytes:
        """An answer, after which the connection is closed where it is the `last`."""
        return self.begin(head, response, last=last) + bytes(response.body)

    def begin(self, head: Head, response: Response, *, last: bool = True) -> bytes:
        """The head of an answer, with what the middleware adds; after the `last` only its body is sent."""
        fields = [*self._fields(), *response.raw_headers]
        if last:
            fields.append((b"connection", b"close"))
        start: Message = {"type": "http.response.start", "status": response.status_code, "headers": fields}
        if "origin" in head.fields:
            asked = Headers({name: head.fields[name] for name in ("origin", "cookie") if name in head.fields})
            with suppress(StopIteration):  # it only waits for `_sent`, which waits for nothing
                self._cors.send(start, _sent, asked).send(None)
        lines = [b"%b: %b\r\n" % field for field in start["headers"]]
        status = HTTPStatus(response.status_code)
        return b"".join((b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()), *lines, b"\r\n"))


_AT_ONCE = int(socket.MSG_DONTWAIT)


async def _sent(_: Message) -> None:
    pass


def _socket_of(transport: asyncio.Transport) -> socket.SocketType:
    """The transport's own, to send by; whoever closes it is the transport. Its family does not matter here."""
    return socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, transport.get_extra_info("socket").fileno())


def peer_of(transport: asyncio.Transport) -> str:
    """The address at the other end; "" where it has none, or had gone before it was here."""
    name = transport.get_extra_info("peername")
    return sys.intern(name[0]) if isinstance(name, tuple) else ""


class Line(asyncio.Protocol):
    """One subscriber's connection: what its session offers goes out, as fast as the peer takes it.

    The transport's own buffer is kept empty: what the kernel does not take at once pauses the session, which then
    counts it as on its way, and becomes lagging by its own bounds.
    """

    __slots__ = ("address", "corked", "counted", "due", "native", "node", "paused", "plain_until", "session", "socket",
                 "task", "transport")  # fmt: skip

    kind = ""  # the transport's name in the metrics
    ready: ClassVar[Ready]  # a message as it is written, once that has been made

    def __init__(self, native: Native, transport: asyncio.Transport, address: str) -> None:
        self.native = native
        self.node = native.node
        self.transport = transport
        self.address = address
        self.session: Session | None = None
        self.corked = self.paused = False
        self.plain_until = 0.0  # by the loop's time: a message is all there is to write
        self.counted = False  # among the node's connections
        self.task: asyncio.Task[Any] | None = None  # while something is asked of somebody else
        self.due: asyncio.TimerHandle | None = None  # while it opens, or ends
        native.connections.add(self)
        tls = transport.get_extra_info("sslcontext") is not None
        # Whatever waits in it pauses us: of TLS 1 byte and more, where 0 would be reached by an empty buffer too.
        transport.set_write_buffer_limits(high=1 if tls else 0, low=0)
        transport.set_protocol(self)
        self.socket = None if tls else _socket_of(transport)

    # ---------------------------------------------------------------- out

    def wake(self) -> None:
        if not self.corked:
            self.native.cork.add(self)

    def flush(self) -> None:
        """Write a batch of what the session has; nearly always that is messages alone, and the same for many."""
        session = self.session
        if session is None or self.paused:
            return
        outbox, size, plain = session.outbox, session.queued, None
        fits = size <= SMALL or size <= session.budget.batch
        if fits and self.native.cork.now < self.plain_until and session.closing is None:
            if len(outbox) != 1:
                plain = self.native.joined.of(self.form, outbox)
            elif (plain := self.ready(outbox[0])) is None:
                plain = self.form(outbox[0])
        if plain is not None:
            self.native.metrics.delivered_bytes += len(plain)
            self.write(plain)
            if self.paused or session.behind or session.lagged or not session.told:
                session.take()
                self._written(session)
            else:
                session.passed()
            return
        data = self.encode(session, session.take())
        if data:
            self.native.metrics.delivered_bytes += len(data)
            self.write(data)
        self._written(session)

    def write(self, data: bytes) -> None:
        """Give bytes to the kernel, and to the transport what it does not take; while nothing waits in the transport.

        uvloop writes by write(2), which costs a sixth more than send(2) does. What waits in the transport goes first,
        and so does TLS; and a transport that is closing may have closed its descriptor, which is somebody else's then.
        """
        if self.socket is not None and not self.transport.is_closing():
            try:
                sent = self.socket.send(data, _AT_ONCE)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.abort()
                return
            if sent == len(data):
                return
            data = data[sent:]
        self.transport.write(data)

    def _written(self, session: Session) -> None:
        """Go on, unless the kernel took less than all of it, which the transport has told within its `write`."""
        if self.paused:
            session.moved_at = asyncio.get_running_loop().time()
            return
        session.sent()
        if session.behind or session.lagged or not session.told:
            self.node.hub.pump(session)
        if session.outbox:
            self.wake()
        elif session.closing is not None:
            code = session.closing
            self.leave()
            self.finish(code)
        else:
            self._caught_up()

    def _caught_up(self) -> None:
        """All that the session had has been written."""

    @staticmethod
    def form(item: Item) -> bytes | None:
        """A message as it is written; None of what is no message."""
        raise NotImplementedError

    def encode(self, session: Session, items: list[Item]) -> bytes:
        raise NotImplementedError

    def finish(self, code: int) -> None:
        """All was written: end the connection."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.session is not None:
            self.session.moved_at = asyncio.get_running_loop().time()
            self._written(self.session)

    # ---------------------------------------------------------------- coming and going

    def take_place(self) -> None:
        """Be counted among the node's connections. Raises Problem where it has too many."""
        self.node.admission.arrive(self.kind, self.address)
        self.counted = True

    def enter(self, identity: Identity, wishes: list[Ask]) -> None:
        """Open the session, at once where the store is not needed for it."""
        session = self.session = self.node.session(identity, self, welcome=True, transport=self.kind)
        self.corked = True  # what it is offered now leaves with the welcome
        opened = self.node.open_at_once(session, wishes)
        self.corked = False
        if opened:
            self.flush()
        else:
            self.task = asyncio.create_task(self._open(session, wishes), name=f"{self.kind} open")

    async def _open(self, session: Session, wishes: list[Ask]) -> None:
        try:
            await self.node.open(session, wishes)
        except Problem as problem:
            self.refuse(problem)
        else:
            self._opened()

    def _opened(self) -> None:
        """The session was opened after the store was asked."""
        raise NotImplementedError

    def refuse(self, problem: Problem) -> None:
        """Say why there is no session, and end the connection."""
        raise NotImplementedError

    def leave(self) -> None:
        """Give up the session and the place on the node."""
        session, self.session = self.session, None
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()  # else it would open, or go on asking for, a session that has ended
        if session is not None:
            self.node.leave(session)
        if self.counted:
            self.counted = False
            self.node.admission.gone(self.kind, self.address)

    def expect(self, within: float, otherwise: Any) -> None:
        self.in_time()
        self.due = asyncio.get_running_loop().call_later(within, otherwise)

    def in_time(self) -> None:
        if self.due is not None:
            self.due.cancel()
            self.due = None

    def abort(self) -> None:
        self.paused = True  # nothing more is written
        self.transport.abort()

    def shutdown(self) -> None:
        """The server ends, and everyone has been told."""
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.native.connections.discard(self)
        self.in_time()
        if self.socket is not None:
            self.socket.detach()
            self.socket = None
        self.leave()
