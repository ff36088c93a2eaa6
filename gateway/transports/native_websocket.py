"""WebSocket below ASGI: the handshake answered from its head, then frames in and corked frames out."""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import math
from collections import deque
from collections.abc import Awaitable
from operator import attrgetter

from gateway import access
from gateway.auth import Credentials, Identity
from gateway.credentials import credentials_of
from gateway.errors import Problem
from gateway.head import Head
from gateway.message import BEAT, Heartbeat, Message
from gateway.node import LAST_WORDS
from gateway.session import Item, Session
from gateway.transports.asks import BODY, URL_CURSOR, Wanted, asks, from_query
from gateway.transports.conversation import LARGEST_FRAME, SUBPROTOCOL, Conversation, Place
from gateway.transports.frames import CLOSE, NO_CODE, PING, PONG, TEXT, FrameError, Reader, close_frame, frame
from gateway.transports.native import Line, Native

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
_FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_PING, _BEAT = frame(PING, b""), frame(TEXT, BEAT.json)
_PONG = b"\x8a\x80"  # a client's answer to that, and then its mask
MISSED = 2  # heartbeats without a pong, after which the peer is taken for gone


def is_handshake(head: Head) -> bool:
    """Whether it is one that is answered here (RFC 6455, 4.2.1); a wrong one is left to those who say what is wrong."""
    fields = head.fields
    if head.method != "GET" or fields.get("sec-websocket-version") != "13":
        return False
    if fields.get("upgrade", "").lower() != "websocket" or "content-length" in fields or "transfer-encoding" in fields:
        return False
    if "upgrade" not in map(str.lower, head.listed("connection")):
        return False
    try:
        return len(binascii.a2b_base64(fields.get("sec-websocket-key", ""), strict_mode=True)) == 16
    except (binascii.Error, ValueError):
        return False


class WebSocketLine(Line, Conversation):
    """One WebSocket, from its handshake to its end."""

    __slots__ = ("closing", "greeting", "identity", "inbox", "place", "reader", "room", "unanswered")

    kind = "websocket"
    ready = attrgetter("frame")
    session: Session | None  # type: ignore[assignment]  # None before it opens and once it has ended

    def __init__(self, native: Native, transport: asyncio.Transport, head: Head) -> None:
        credentials = credentials_of(head, native.node.auth.limits)
        super().__init__(native, transport, credentials.address)
        self.place = Place.of(credentials)
        self.reader: Reader | None = None  # while part of a message is here
        self.inbox: deque[str] | None = None  # what came while a frame is being acted on; nothing more is read then
        self.room: asyncio.Future[None] | None = None  # waited for by that: the outbox is empty
        self.plain_until = math.inf
        self.unanswered = 0  # pings
        self.closing = False
        self.greeting = b""  # goes out with the first frames, if those are there at once
        self._begin(head, credentials)

    # ---------------------------------------------------------------- opening

    @staticmethod
    def switching(head: Head) -> bytes:
        """The answer to a handshake (RFC 6455, 4.2.2)."""
        key = head.fields["sec-websocket-key"].encode() + _GUID
        accept = binascii.b2a_base64(hashlib.sha1(key, usedforsecurity=False).digest(), newline=False)
        chosen = b""
        if SUBPROTOCOL in head.listed("sec-websocket-protocol"):
            chosen = b"Sec-WebSocket-Protocol: %b\r\n" % SUBPROTOCOL.encode()
        return b"%bSec-WebSocket-Accept: %b\r\n%b\r\n" % (_SWITCHING, accept, chosen)

    def _begin(self, head: Head, credentials: Credentials) -> None:
        auth = self.node.auth
        try:
            auth.limits.request(self.address)
            self.node.admission.check(self.kind)
            found = auth.begin(credentials)
        except Problem as problem:
            if problem.code == "forbidden_origin" or auth.foreign(credentials):
                self.transport.write(_FORBIDDEN)
                self.transport.close()
            else:
                self.transport.write(self.switching(head))
                self.refuse(problem)
            return
        self.greeting = self.switching(head)
        try:
            if found is None:
                self.take_place()
                self.expect(self.node.settings.connect_within, self._too_late)
            elif isinstance(found, Identity):
                self.take_place()
                self._admit(found, from_query(head.query, head.query_string), URL_CURSOR)
            else:
                self.task = asyncio.create_task(self._admit_slowly(found, head), name="websocket login")
        except Problem as problem:
            self.refuse(problem)
        if self.greeting and not self.transport.is_closing():
            self.transport.write(self.greeting)
            self.greeting = b""

    def _admit(self, identity: Identity, wanted: Wanted, cursor_limit: int) -> None:
        """Raises Problem."""
        self.identity = identity
        self.enter(identity, asks(wanted, identity, self.node.settings, cursor_limit))

    def _opened(self) -> None:
        self._listen_again()

    async def _admit_slowly(self, found: Awaitable[Identity], head: Head) -> None:
        try:
            identity = await found
            self.take_place()
            self._admit(identity, from_query(head.query, head.query_string), URL_CURSOR)
        except Problem as problem:
            self.refuse(problem)
        self._after_login()

    def _after_login(self) -> None:
        """The task that logged in is over, unless opening goes on in one of its own."""
        if self.task is asyncio.current_task():
            self._listen_again()

    def _too_late(self) -> None:
        self.refuse(Problem("unauthorised", "Send a connect frame with a token within a few seconds"))

    def refuse(self, problem: Problem) -> None:
        self.node.metrics.refusals[problem.code] += 1
        access.refused(self.kind, self.address, problem)
        self.leave()
        self.transport.write(self.greeting)
        self.greeting = b""
        self._close(problem.kind.close, problem.detail)

    # ---------------------------------------------------------------- out

    @staticmethod
    def form(item: Item) -> bytes | None:
        if not isinstance(item, Message):
            return None
        if item.frame is None:
            item.frame = frame(TEXT, item.json)
        return item.frame

    def encode(self, session: Session, items: list[Item]) -> bytes:
        if not items:
            return b""
        parts, self.greeting, ping = [self.greeting], b"", b""
        for item in items:
            parts.append(_BEAT if item is BEAT else self.form(item) or frame(TEXT, item.json))
            if isinstance(item, Heartbeat) and not ping:  # one for all that waited together
                if self.unanswered >= MISSED:
                    self.abort()
                self.unanswered += 1
                ping = _PING
        return b"".join([*parts, ping])

    def _caught_up(self) -> None:
        if self.room is not None and not self.room.done():
            self.room.set_result(None)
            self.plain_until = math.inf

    def finish(self, code: int) -> None:
        self._close(code)

    def _close(self, code: int, reason: str = "") -> None:
        """Send the close frame and wait for the peer's, as long as last words may take."""
        if self.closing:
            return
        self.closing = True
        if not self.transport.is_closing():
            self.transport.write(close_frame(code, reason))
            self.expect(LAST_WORDS, self.abort)
            self._resume_reading()

    # ---------------------------------------------------------------- in

    def data_received(self, data: bytes) -> None:
        reader = self.reader
        if reader is None:
            if len(data) == 6 and data.startswith(_PONG):
                self.unanswered = 0
                return
            reader = Reader(LARGEST_FRAME)
        try:
            for opcode, payload in reader.feed(data):
                if opcode == PONG:
                    self.unanswered = 0
                elif opcode == PING:
                    if not self.paused:  # else it reads nothing, no pong either
                        self.transport.write(frame(PONG, payload))
                elif opcode == CLOSE:
                    self._closed(payload)
                    return
                elif not self.closing:
                    self.on_message(opcode, payload)
        except FrameError as error:
            self.leave()
            self._close(error.code, error.reason)
            self.transport.close()
            return
        self.reader = None if reader.empty else reader

    def shutdown(self) -> None:
        if self.session is None and not self.closing:  # it has not said who it is
            self.refuse(Problem("draining", "This node is shutting down: try again, another one answers"))
        else:
            super().shutdown()

    def _closed(self, payload: bytes) -> None:
        """The peer's close frame: answered by one, unless it is the answer (5.5.1)."""
        self.leave()
        if not self.closing:
            self.closing = True
            code = int.from_bytes(payload[:2]) if payload else NO_CODE
            self.transport.write(frame(CLOSE, b"") if code == NO_CODE else close_frame(code))
        self.expect(LAST_WORDS, self.abort)
        self.transport.close()

    def on_message(self, opcode: int, payload: bytes) -> None:
        """A whole message of the client's."""
        if self.session is not None and self.session.closing is not None:
            return
        if opcode != TEXT:
            self._fail(Problem("bad_request", "Frames are JSON in text frames, not binary"))
            return
        if self.inbox is None:
            self.inbox = deque()
        self.inbox.append(payload.decode())
        if self.task is None:
            self.task = asyncio.create_task(self._converse(), name="websocket frames")
        self.transport.pause_reading()

    async def _converse(self) -> None:
        """Act on what came, a frame at a time and no faster than the client reads the answers."""
        try:
            while self.inbox and not self.closing:
                text = self.inbox.popleft()
                self.check_size(text)
                if self.session is None:
                    await self._login(text)
                    return
                await self.hear(text)
                while self.session is not None and self.session.outbox:
                    self.room = asyncio.get_running_loop().create_future()
                    self.plain_until = 0.0  # or nobody would be told that there is room
                    await self.room
        except Problem as problem:
            self._fail(problem)
            self.inbox = None
        self._listen_again()

    async def _login(self, text: str) -> None:
        """The first frame of one that said nothing in its handshake."""
        try:
            wanted, identity = await self.connect(text)
            self.in_time()
            self._admit(identity, wanted, BODY)
        except Problem as problem:
            self.refuse(problem)
        self._after_login()

    def _listen_again(self) -> None:
        """Nothing is asked of anybody any more: go on with what came meanwhile, then with what comes."""
        self.task = None
        if self.inbox and not self.closing:
            self.task = asyncio.create_task(self._converse(), name="websocket frames")
        else:
            self.inbox = None
            self._resume_reading()

    def _resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _fail(self, problem: Problem) -> None:
        """A frame that ends the connection."""
        if self.session is None:
            self.refuse(problem)
        else:
            self.end(problem)
