"""`ringcast serve`: uvicorn with our start, our end, and a way to cut a connection that takes nothing."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway.app import create_app
from gateway.node import Node
from gateway.settings import ConfigError, Settings

log = logging.getLogger("ringcast.server")

BACKLOG = 4096
WRITE_BUFFER = 16 << 10  # bytes that a connection holds unseen by the budget; with more, whoever writes waits
UNSENT = 64 << 10  # bytes in the kernel beyond what is on its way; it would take megabytes, and pings wait behind them
LARGEST_FRAME = 1 << 20  # bytes; beyond it the connection fails by RFC 6455's 1009, below it we say why
LARGEST_HEAD = 64 << 10  # bytes of a request's head that has not ended yet
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
KEEP_ALIVE = 75  # seconds an idle HTTP connection stays: polls come back on it
LAST_REQUESTS = 10  # seconds that requests under way have for finishing


class HttpProtocol(HttpToolsProtocol):
    """Bounds the head of a request, which uvicorn lets grow, and take, as long as the client likes.

    Also tells the application how to cut this connection and when what it wrote has left: closing would wait for the
    peer to take what was sent.
    """

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
        super().data_received(data)
        if self._head_due is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD:
                self.transport.write(HEAD_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions = {"ringcast.abort": self.transport.abort, "ringcast.drained": self.flow.drain}
        self.scope["extensions"] = extensions  # type: ignore[typeddict-item]
        if self._head_due is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._have_head()
        super().on_headers_complete()

    def _await_head(self) -> None:
        node: Node = cast(Starlette, self.config.app).state.node
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


class Server(uvicorn.Server):
    """Prints the ready line; on SIGTERM sends every client away, on SIGINT or a second signal at once, and ends."""

    def __init__(self, app: Starlette, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app, http=HttpProtocol, ws=WebSocketProtocol, lifespan="on", log_config=None, access_log=False,
                server_header=False, ws_per_message_deflate=False, ws_max_size=LARGEST_FRAME,
                ws_ping_interval=settings.heartbeat, ws_ping_timeout=2 * settings.heartbeat,
                timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=LAST_REQUESTS, backlog=BACKLOG,
                proxy_headers=False,  # X-Forwarded-For is read with trusted_proxies, by ourselves
            )
        )
        self.settings = settings
        self.node: Node = app.state.node
        self.node.on_death = self._died
        self.exit_code = 0
        # Why it does not serve: stdout did not take the ready line, or the store cannot be used with these settings.
        self.refused: OSError | ConfigError | None = None
        self._announced = False
        self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def _died(self) -> None:
        self.exit_code = 1
        self.should_exit = True
        self._hurry.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self.node.broker.start()
        except ConfigError as error:
            self.refused, self.should_exit = error, True
            return
        await super().startup(sockets)
        if self.should_exit:
            self.exit_code = 1
            return

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: the ready line, once the store answers too."""
        if not self._announced and self.node.broker.connected:
            self._announced = True
            self._announce()
        return await super().on_tick(counter)

    def _announce(self) -> None:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        broker = self.settings.broker.partition(":")[0]
        try:
            print(f"ringcast ready {url} node={self.settings.node} broker={broker}", flush=True)
        except OSError as error:  # whoever started it waits for this line, and would wait for ever
            self.refused = error
            self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None and not self._loop.is_closed() and (self.should_exit or sig == signal.SIGINT):
            self._loop.call_soon_threadsafe(self._hurry.set)
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """For good: unlike uvicorn's, no signal is raised again at the end, and none that comes late kills a node that
        is about to exit with 0."""
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self.handle_exit)
        yield
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, signal.SIG_IGN)  # the interpreter's own end would restore any other handler

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Be unready, go on serving while others learn of it, say goodbye, let requests finish, end."""
        settings, alone = self.settings, self.settings.broker.startswith("memory:")
        if alone:  # there is nobody to hand anything over to
            await self.node.drain(over=0.0, grace=0.0, hurry=self._hurry)
        else:
            self.node.depart()
            try:
                async with asyncio.timeout(settings.drain_wait):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            await self.node.drain(over=settings.drain, grace=2.0, hurry=self._hurry)
        await super().shutdown(sockets)


def serve(settings: Settings) -> int:
    """Run one node until it is told to end; returns the exit code.

    Raises ConfigError for what cannot work, and OSError when stdout takes no line.
    """
    _log(settings.log_level)
    settings = settings.model_copy(update={"max_connections": _affordable(settings.max_connections)})
    app = create_app(settings)
    listener = _listen(settings)
    server = Server(app, settings)
    server.run(sockets=[listener])
    listener.close()
    if server.refused is not None:
        raise server.refused
    return server.exit_code


def _log(level: str) -> None:
    """Our log lines go to stderr. Libraries speak of trouble only: at INFO they write query strings, which may hold a
    ticket, and at DEBUG whole handshakes with their tokens."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("ringcast").setLevel(level.upper())


def _listen(settings: Settings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        why = error.strerror or str(error)
        detail = f"cannot listen on {settings.host} port {settings.port}: {why}; choose another --port"
        raise ConfigError(detail) from None
    # Accepted connections inherit it: a peer that is gone is given up by the kernel too. So is one that takes nothing,
    # though it answers: we are to notice that first, and to say so.
    patience = 1000 * (2 * settings.heartbeat + settings.stuck_after)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    return listener


def _affordable(connections: int) -> int:
    """As many connections as the descriptor limit allows, which is raised as far as it goes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = hard * 9 // 10
    if hard != resource.RLIM_INFINITY and connections > most:
        log.warning("the limit of %d open files is enough for %d connections, not %d", hard, most, connections)
        return most
    return connections
