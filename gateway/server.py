"""`ringcast serve`: uvicorn with our start, our end, and a way to cut a connection that takes nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware

from gateway import logs
from gateway.app import cors, create_app
from gateway.drain import drain
from gateway.listener import bind, taken, url_of
from gateway.native_publish import PublishLine
from gateway.node import Node
from gateway.protocols import Door, Doors, HttpProtocol, WebSocketProtocol
from gateway.settings import ConfigError, Settings
from gateway.transports.conversation import LARGEST_FRAME
from gateway.transports.native import Native
from gateway.workers import Worker, Workers

log = logging.getLogger("ringcast.server")

BACKLOG = 4096
KEEP_ALIVE = 75  # seconds an idle HTTP connection stays: polls come back on it
LAST_REQUESTS = 10  # seconds that requests under way have for finishing


class Server(uvicorn.Server):
    """Prints the ready line; on SIGTERM sends every client away, on SIGINT or a second signal at once, and ends."""

    def __init__(self, app: Starlette, settings: Settings, worker: Worker | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app, http=Door, ws=WebSocketProtocol, lifespan="on", log_config=None, access_log=False,
                server_header=False, ws_per_message_deflate=False, ws_max_size=LARGEST_FRAME,
                ws_ping_interval=settings.heartbeat, ws_ping_timeout=2 * settings.heartbeat,
                timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=LAST_REQUESTS, backlog=BACKLOG,
                ssl_certfile=settings.tls_certificate, ssl_keyfile=settings.tls_key,
                proxy_headers=False,  # X-Forwarded-For is read with trusted_proxies, by ourselves
            )
        )
        self.settings = settings
        self.worker = worker  # None where this process is all there is
        self.node: Node = app.state.node
        state = self.server_state
        native = None
        if settings.native:
            middleware = CORSMiddleware(app, **cors(settings))
            native = Native(self.node, middleware, state.connections, lambda: state.default_headers)
        app.state.doors = Doors(self.node, native)
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
        if self.worker is not None:
            self.worker.watch(lambda: self.handle_exit(signal.SIGTERM, None))
        try:
            await super().startup(sockets)  # which listens last, when the node has heard its store
        except OSError as error:
            await self.lifespan.shutdown()
            self.refused, self.should_exit = taken(self.settings, error), True
        if self.should_exit:  # nobody has come yet who could be sent away
            self._hurry.set()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: the ready line, once the store answers too, users can be let in and the nodes know."""
        if not self._announced and not self.node.missing():
            self._announced = True
            self._announce()
            if self.refused is None:
                native = self.settings.native
                log.info("WebSockets and event streams are served %s ASGI", "below" if native else "through")
        return await super().on_tick(counter)

    def _announce(self) -> None:
        if self.worker is not None:
            self.worker.ready()
            return
        url = url_of(self.servers[0].sockets[0], self.settings)
        broker = self.settings.broker.partition(":")[0]
        try:
            print(f"ringcast ready {url} node={self.settings.node} broker={broker}", flush=True)
        except OSError as error:  # whoever started it waits for this line, and would wait for ever
            self.refused = error
            self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.node.draining = True
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
        await drain(self.node, self._hurry, self._refuse)
        await super().shutdown(sockets)

    def _refuse(self) -> None:
        """Listen no more, and keep no connection on which the next request would come."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpProtocol | PublishLine):
                connection.close_idle()


def serve(settings: Settings) -> int:
    """Run one node, or as many as there are workers, until told to end; returns the exit code.

    Raises ConfigError for what cannot work, and OSError when stdout takes no line.
    """
    logs.write(settings)
    _check_tls(settings)
    # What there is by now stays; and connections are no garbage. With the interpreter's own thresholds a storm of them
    # spends a fifth of its time on looking for some, and a full collection holds the loop for as long as they are many.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    return serve_one(settings) if settings.workers == 1 else Workers(settings, serve_one).run()


def serve_one(settings: Settings, worker: Worker | None = None) -> int:
    if worker is not None:
        logs.write(settings)  # its node has a name of its own
    settings = settings.model_copy(update={"max_connections": _affordable(settings.max_connections)})
    with _traced(settings):
        return _serve(settings, worker)


def _serve(settings: Settings, worker: Worker | None) -> int:
    app = create_app(settings)
    bound = bind(settings)
    server = Server(app, settings, worker)
    server.run(sockets=[bound])
    bound.close()
    if server.refused is not None:
        raise server.refused
    return server.exit_code


@contextmanager
def _traced(settings: Settings) -> Iterator[None]:
    """Send spans where that is asked for, the last of them at the end."""
    if not settings.tracing:
        yield
        return
    from gateway.tracing import export, flush  # OpenTelemetry, which nobody else has to install

    provider = export(settings)
    try:
        yield
    finally:
        flush(provider)


def _check_tls(settings: Settings) -> None:
    if settings.tls_certificate is None:
        if settings.tls_key is not None:
            raise ConfigError("tls_key: without tls_certificate there is nothing that it is the key of")
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls_certificate and tls_key cannot be used: {error}") from None


def _affordable(connections: int) -> int:
    """As many connections as the descriptor limit allows, which is raised as far as it goes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = hard * 9 // 10
    if hard != resource.RLIM_INFINITY and connections > most:
        log.warning("the limit of %d open files is enough for %d connections, not %d", hard, most, connections)
        return most
    return connections
