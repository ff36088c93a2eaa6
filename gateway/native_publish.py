"""Publishing below ASGI: a connection whose requests are plain publishes, each answered by one write.

A plain one is JSON of a known, moderate length, all of which arrives soon. Every other request is handed over to the
HTTP server, with whatever has not been answered yet, so that there is one answer to everything odd.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from gateway import cloudevents
from gateway.errors import Problem
from gateway.head import Head
from gateway.http import JSON, begin_of_head, encode, media_type, problem_response
from gateway.identity import Identity
from gateway.intake import PATH
from gateway.message import Draft
from gateway.publish import Refusal, check_id, parse
from gateway.results import publish_at_once, publish_items
from gateway.transports.native import Native, peer_of

log = logging.getLogger("ringcast.native")

POST = b"POST %b " % PATH.encode()
LARGEST_HEAD, LARGEST_BODY = 8 << 10, 64 << 10  # bytes of what is taken here
SOON = 1.0  # seconds for the rest of a request to arrive; from then on its deadlines are the HTTP server's affair
WRITE_BUFFER = 16 << 10  # bytes of answers that wait for their reader; with more, no request is answered

_LAST = b"connection: close\r\n"
_OK = b"cache-control: no-store\r\ncontent-type: application/json\r\n"
# Fields that ask for something else, or that a browser's page sends, to which CORS is the answer.
_ODD = frozenset({"transfer-encoding", "content-encoding", "expect", "upgrade", "origin"})


def is_plain(head: Head) -> bool:
    fields = head.fields
    length = fields.get("content-length", "")
    return (
        _ODD.isdisjoint(fields)
        and length.isdecimal() and len(length) < 10 and int(length) <= LARGEST_BODY
        and fields.get("connection", "keep-alive").lower() == "keep-alive"
        and media_type(fields) == JSON and not cloudevents.is_binary(fields)
        and "," not in fields.get("idempotency-key", "")  # there may be two of them
    )  # fmt: skip


class PublishLine(asyncio.Protocol):
    """A publisher's connection. One request is answered at a time; what comes meanwhile waits, and is not read on.

    Ends when nothing is asked for `idle` seconds.
    """

    __slots__ = ("_answered", "_at_once", "_buffer", "_closing", "_due", "_hand_over", "_head", "_idle", "_loop",
                 "_native", "_node", "_paused", "_peer", "_raw", "_scheme", "_task", "_timer", "transport")  # fmt: skip

    def __init__(
        self, native: Native, transport: asyncio.Transport, idle: float, hand_over: Callable[[bytes], None]
    ) -> None:
        """`hand_over` gives the connection to the HTTP server, with what it sent and was not answered."""
        self._native, self._node = native, native.node
        self._at_once = self._node.store is None and self._node.broker.publish_now is not None
        self.transport = transport
        self._hand_over = hand_over
        self._loop = asyncio.get_running_loop()
        self._peer = peer_of(transport)
        self._scheme = "http" if transport.get_extra_info("sslcontext") is None else "https"
        self._buffer = b""
        self._raw = b""  # the last head, which most of a publisher's are the same as: then it is not parsed again
        self._head: Head
        self._closing = False  # the next answer is the last
        self._paused = False  # the peer does not read its answers
        self._task: asyncio.Task[None] | None = None  # while something is asked of somebody else
        self._due: asyncio.TimerHandle | None = None  # while a request has come in part
        self._idle = idle
        self._answered = self._loop.time()
        self._timer = self._loop.call_later(idle, self._look)
        native.connections.add(self)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        transport.set_protocol(self)

    # ---------------------------------------------------------------- in

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self._task is not None or self._paused:
            self.transport.pause_reading()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Answer what has arrived of whole requests, as far as nobody has to be waited for."""
        while self._buffer and self._task is None and not self._paused and not self.transport.is_closing():
            if not self._buffer.startswith(POST):
                if POST.startswith(self._buffer):
                    self._await()
                else:
                    self._leave()
                return
            if not (self._raw and self._buffer.startswith(self._raw)):
                found = Head.parse(self._buffer, self._peer, self._scheme)
                if found is None and b"\r\n\r\n" not in self._buffer and len(self._buffer) <= LARGEST_HEAD:
                    self._await()
                    return
                if found is None or not is_plain(found[0]):
                    self._leave()
                    return
                self._head, self._raw = found[0], self._buffer[: found[1]]
            head, begin = self._head, len(self._raw)
            end = begin + int(head.fields["content-length"])
            if len(self._buffer) < end:
                self._await()
                return
            if self._due is not None:
                self._due.cancel()
                self._due = None
            body, self._buffer = self._buffer[begin:end], self._buffer[end:]
            self._take(head, body)

    def _await(self) -> None:
        if self._due is None:
            self._due = self._loop.call_later(SOON, self._leave)

    def _leave(self) -> None:
        """What comes is another's to answer."""
        self._let_go()
        self._hand_over(self._buffer)

    # ---------------------------------------------------------------- publishing

    def _take(self, head: Head, body: bytes) -> None:
        node, items = self._node, None
        try:
            found = begin_of_head(head, node.auth)
            if isinstance(found, Identity) and self._at_once:
                items = self._items(head, found, body)
                if len(items) == 1:
                    self._answer([publish_at_once(node, found, items[0])])
                    return
        except Exception as error:
            self._refuse(head, error)
        else:
            self._task = self._loop.create_task(self._take_slowly(head, found, body, items), name="publish")

    async def _take_slowly(
        self, head: Head, found: Identity | Awaitable[Identity], body: bytes, items: list[Draft | Refusal] | None
    ) -> None:
        """The same where somebody else is asked: who this is, or to store it, or to give others their turn."""
        try:
            identity = found if isinstance(found, Identity) else await found
            items = self._items(head, identity, body) if items is None else items
            self._answer(await publish_items(self._node, identity, items))
        except Exception as error:
            self._refuse(head, error)
        self._task = None
        if not self._paused:
            self._resume()

    def _items(self, head: Head, identity: Identity, body: bytes) -> list[Draft | Refusal]:
        key = head.fields.get("idempotency-key")
        return parse(body, self._node.settings, identity.principal, None if key is None else check_id([key]))

    # ---------------------------------------------------------------- out

    def _answer(self, results: list[Any]) -> None:
        body = encode({"results": results})
        length = b"content-length: %d\r\n\r\n" % len(body)
        last = _LAST if self._ends else b""
        self._write(b"".join((b"HTTP/1.1 200 OK\r\n", *self._native.added(), last, _OK, length, body)))

    def _refuse(self, head: Head, error: Exception) -> None:
        if isinstance(error, Problem):
            self._node.metrics.refusals[error.code] += 1
        else:
            log.error("a publish failed", exc_info=error)
            error = Problem("server_error", "The gateway failed on this request; its log says how")
        self._write(self._native.whole(head, problem_response(error), last=self._ends))

    @property
    def _ends(self) -> bool:
        """Whether the next request is to meet a node that stays."""
        return self._closing or self._node.admission.closed

    def _write(self, data: bytes) -> None:
        self._answered = self._loop.time()
        if not self.transport.is_closing():
            self.transport.write(data)
            if self._ends:
                self.transport.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._task is None:
            self._resume()

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()
            self._go_on()

    # ---------------------------------------------------------------- coming and going

    def _look(self) -> None:
        """End the connection when it has been idle for long enough; else look again when it could have been."""
        left = self._answered + self._idle - self._loop.time()
        if left > 0 or self._task is not None or self._paused:
            self._timer = self._loop.call_later(max(left, SOON), self._look)
        else:
            self.transport.close()

    def close_idle(self) -> None:
        """End the connection, once it has answered what has been asked for."""
        if not self._buffer:
            self.shutdown()

    def shutdown(self) -> None:
        if self._task is None:
            self.transport.close()
        self._closing = True

    def _let_go(self) -> None:
        self._native.connections.discard(self)
        self._timer.cancel()
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
