"""What of a connection is uvicorn's, and where that is not enough: all that knows its insides is in this file."""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from starlette.applications import Starlette
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import is_ssl
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from gateway.head import Head
from gateway.native_publish import POST, PublishLine
from gateway.node import Node
from gateway.transports.native import Native, peer_of
from gateway.transports.native_sse import SseLine, is_stream
from gateway.transports.native_websocket import WebSocketLine, is_handshake

WRITE_BUFFER = 16 << 10  # bytes that a connection holds unseen by the budget; with more, whoever writes waits
LARGEST_HEAD = 64 << 10  # bytes of a request's head that has not ended yet
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
PLAIN_HEAD = 8 << 10  # bytes of a head that is read here
_OURS = re.compile(rb"GET /v1/(?:ws|sse)[ ?]")
_BEGINNINGS = (b"GET /v1/ws?", b"GET /v1/sse?", POST)


class Doors:
    """What all doors share; and the connections whose first head has not ended, the oldest first.

    Each has as long as the others, so that one timer is enough for all.
    """

    def __init__(self, node: Node, native: Native | None) -> None:
        """`native` takes WebSockets and event streams; where it is None they are uvicorn's too."""
        self.node = node
        self.native = native
        self._within = node.settings.stuck_after
        self._until: dict[Door, float] = {}
        self._watched = False

    def add(self, door: Door) -> None:
        loop = asyncio.get_running_loop()
        self._until[door] = loop.time() + self._within
        if not self._watched:
            self._watched = True
            loop.call_later(self._within, self._look)

    def discard(self, door: Door) -> None:
        self._until.pop(door, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._until:
            door, until = next(iter(self._until.items()))
            if until > now:
                loop.call_at(until, self._look)
                return
            del self._until[door]
            door.transport.abort()
        self._watched = False


class Door(asyncio.Protocol):
    """Every connection's first protocol: WebSockets, event streams and publishes are taken here, all else is uvicorn's.

    A head that is not of the plain kind is uvicorn's too, so that there is one answer to everything odd.
    """

    __slots__ = ("_app_state", "_buffer", "_config", "_doors", "_loop", "_server", "transport")

    transport: asyncio.Transport

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip
        self._config, self._server, self._app_state = config, server_state, app_state
        self._doors: Doors = _app(config).state.doors
        self._loop = _loop or asyncio.get_running_loop()
        self._buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._server.connections.add(self)  # type: ignore[arg-type]  # it is asked for `shutdown` alone
        self._doors.node.admission.descriptor = transport.get_extra_info("socket").fileno()
        self._doors.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        native = self._doors.native
        if native is not None and native.publishes and self._buffer.startswith(POST):
            self._let_go()
            line = PublishLine(native, self.transport, self._config.timeout_keep_alive, self._hand_over)
            line.data_received(self._buffer)
        elif native is None or len(self._buffer) > PLAIN_HEAD:
            self._hand_over(self._buffer)
        elif _OURS.match(self._buffer):
            if b"\r\n\r\n" in self._buffer:
                self._answer(native)
        elif not any(beginning.startswith(self._buffer) for beginning in _BEGINNINGS):
            self._hand_over(self._buffer)

    def _answer(self, native: Native) -> None:
        peer = peer_of(self.transport)
        scheme = "https" if is_ssl(self.transport) else "http"
        found = Head.parse(self._buffer, peer, scheme)
        if found is None:
            self._hand_over(self._buffer)
            return
        head, size = found
        rest = self._buffer[size:]
        if head.path == "/v1/ws" and is_handshake(head):
            self._let_go()
            head.scheme = "wss" if scheme == "https" else "ws"
            line = WebSocketLine(native, self.transport, head)
            if rest and not self.transport.is_closing():
                line.data_received(rest)
        elif head.path == "/v1/sse" and is_stream(head):
            self._let_go()
            SseLine(native, self.transport, head)
        else:
            self._hand_over(self._buffer)

    def _hand_over(self, data: bytes) -> None:
        self._let_go()
        protocol = HttpProtocol(self._config, self._server, self._app_state, self._loop)
        if data.startswith(POST):
            protocol.ours = (b"GET /v1/",)  # whoever publishes in another way will do so again
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(data)

    def _let_go(self) -> None:
        self._server.connections.discard(self)
        self._doors.discard(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()

    def shutdown(self) -> None:
        self.transport.close()


def _app(config: Config) -> Starlette:
    return cast(Starlette, config.app)


class HttpProtocol(HttpToolsProtocol):
    """Bounds the head of a request, which uvicorn lets grow, and take, as long as the client likes.

    Also tells the application how to cut this connection and when what it wrote has left: closing would wait for the
    peer to take what was sent.
    """

    ours: tuple[bytes, ...] = (b"GET /v1/", POST)  # how a request begins that may not be uvicorn's
    _whole = False  # whether all of the last request has arrived
    _head_bytes = 0
    _head_due: asyncio.TimerHandle | None = None  # set from the connection's or a request's beginning to its head's end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        answered = self._whole and self.cycle is not None and self.cycle.response_complete
        if answered and data.startswith(self.ours):
            self._next_door(data)
            return
        super().data_received(data)
        if self._head_due is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD:
                self.transport.write(HEAD_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._whole = False
        extensions = {"ringcast.abort": self.transport.abort, "ringcast.drained": self.flow.drain}
        self.scope["extensions"] = extensions  # type: ignore[typeddict-item]
        if self._head_due is None:
            self._await_head()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._whole = True

    def _next_door(self, data: bytes) -> None:
        """A request behind another one may be a WebSocket's, a stream's or a publish as well."""
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        door = Door(self.config, self.server_state, self.app_state, self.loop)
        self.transport.set_protocol(door)
        door.connection_made(self.transport)
        door.data_received(data)

    def on_headers_complete(self) -> None:
        self._have_head()
        super().on_headers_complete()
        node: Node = _app(self.config).state.node
        if node.admission.closed and self.cycle is not None:
            self.cycle.keep_alive = False  # the next request meets a node that stays

    def close_idle(self) -> None:
        """End the connection, once it has answered what has been asked for."""
        if self._head_due is None:
            self.shutdown()

    def _await_head(self) -> None:
        node: Node = _app(self.config).state.node
        self._head_bytes = 0
        self._head_due = self.loop.call_later(node.settings.stuck_after, self.transport.abort)

    def _have_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """The same for WebSockets; and a peer that has much to read yet is not taken for dead.

    Answers a handshake that cannot be parsed, which uvicorn would leave open without a word.
    """

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if self.handshake_initiated and not self.close_sent:
            extensions = cast("dict[str, Any]", self.scope["extensions"])
            extensions["ringcast.abort"] = self.transport.abort
            extensions["ringcast.drained"] = self.writable.wait

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self.frames = []
            self.conn.send_close(1007)  # RFC 6455, 8.1; uvicorn does so too, with a traceback in our log for each
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def keepalive_timeout(self) -> None:
        if self.read_paused or self.transport.get_write_buffer_size():
            # The ping is still behind what the peer has to read, or its pong behind what we do not read before the
            # peer does. Whether it is stuck is for its session to say.
            self.pong_timer = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
