"""What `gateway/protocols.py` and `gateway/server.py` know of uvicorn's insides: each a test, on uvicorn itself.

A release that breaks one of these is kept out by the ceiling in pyproject.toml, until the sentence that the test fails
with has been acted on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers a request with what its extensions say; accepts a WebSocket and hears it out."""
    if scope["type"] == "http":
        said = scope.get("extensions", {}).get("said", b"nothing")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})
        return
    await receive()
    await send({"type": "websocket.accept", "headers": [(b"said", scope["extensions"].get("said", b"nothing"))]})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@asynccontextmanager
async def serving(server: uvicorn.Server) -> AsyncIterator[None]:
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110 - it is an attribute
            await asyncio.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        async with asyncio.timeout(10):
            await task


def server_of(**changes: Any) -> uvicorn.Server:
    settings: dict[str, Any] = {"port": 0, "lifespan": "off", "log_config": None, "ws": WebSocketsSansIOProtocol}
    return uvicorn.Server(uvicorn.Config(app, **(settings | changes)))


def port_of(server: uvicorn.Server) -> int:
    try:
        port: int = server.servers[0].sockets[0].getsockname()[1]
    except (AttributeError, IndexError, TypeError):
        pytest.fail("Server.servers no longer holds asyncio's servers: Server._announce takes the port from there")
    return port


@asynccontextmanager
async def client(server: uvicorn.Server) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask(peer: Client, request: bytes) -> bytes:
    """The head of the answer, and its body where it says how long that is."""
    peer[1].write(request)
    async with asyncio.timeout(10):
        head = await peer[0].readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return head + await peer[0].readexactly(int(length[0].split(b":")[1])) if length else head


def noted(base: type, **methods: Callable[..., Any]) -> tuple[Any, list[Any]]:
    """A subclass with these methods, and the protocols of it that were made."""
    made: list[Any] = []

    def connection_made(self: Any, transport: asyncio.Transport) -> None:
        base.connection_made(self, transport)  # type: ignore[attr-defined]
        made.append(self)

    return type("Noted", (base,), {"connection_made": connection_made, **methods}), made


# ---------------------------------------------------------------- the server


async def test_a_protocol_is_made_by_four_keywords() -> None:
    given: list[Any] = []

    class Bare(asyncio.Protocol):
        def __init__(self, **keywords: Any) -> None:
            given.append(keywords)

    server = server_of(http=Bare)
    async with serving(server), client(server):
        async with asyncio.timeout(10):
            while not given:  # noqa: ASYNC110 - it is a list
                await asyncio.sleep(0.01)
    assert given[0].keys() == {"config", "server_state", "app_state", "_loop"}, (
        "uvicorn makes its protocols with other arguments: Door.__init__ has to take them"
    )
    assert given[0]["config"].app is app, "Config.app is no longer the application as it was given: see _app"
    assert given[0]["server_state"] is server.server_state, "there is another state than Server.server_state"


async def test_connections_are_asked_to_shut_down_and_waited_for() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    class Stays(asyncio.Protocol):
        def __init__(self, server_state: Any, **_: Any) -> None:
            self.state = server_state

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            self.state.connections.add(self)

        def shutdown(self) -> None:
            asked.set()

        def go(self) -> None:
            left.set()
            self.state.connections.discard(self)
            self.transport.close()  # from Python 3.12 on a server waits for it, too

    server = server_of(http=Stays)
    async with serving(server), client(server):
        async with asyncio.timeout(10):
            while not server.server_state.connections:  # noqa: ASYNC110 - it is a set
                await asyncio.sleep(0.01)
        (stays,) = server.server_state.connections
        ending = asyncio.create_task(server.shutdown())
        async with asyncio.timeout(10):
            await asked.wait()
        await asyncio.sleep(0.3)
        assert not ending.done(), "uvicorn no longer waits for ServerState.connections: a stream would be cut off"
        stays.go()  # type: ignore[union-attr]
        async with asyncio.timeout(10):
            await ending
    assert left.is_set()


async def test_fields_of_every_answer_are_the_state_s() -> None:
    server = server_of(server_header=False)
    async with serving(server):
        await server.on_tick(0)
        names = [name for name, _ in server.server_state.default_headers]
        assert names == [b"date"], "ServerState.default_headers are no longer pairs with the date: see Native.begin"


async def test_a_server_is_started_turned_and_ended_by_the_methods_that_are_ours() -> None:
    called: list[str] = []

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            called.append("startup")
            await super().startup(sockets)

        async def on_tick(self, counter: int) -> bool:
            called.append("on_tick")
            return await super().on_tick(counter)

        async def shutdown(self, sockets: Any = None) -> None:
            called.append("shutdown")
            await super().shutdown(sockets)

        def capture_signals(self) -> Any:
            called.append("capture_signals")
            return super().capture_signals()

    server = Server(server_of().config)
    async with serving(server):
        async with asyncio.timeout(10):
            while called.count("on_tick") < 3:  # noqa: ASYNC110 - it is a list
                await asyncio.sleep(0.01)
    assert list(dict.fromkeys(called)) == ["capture_signals", "startup", "on_tick", "shutdown"], (
        "uvicorn.Server goes through its life by other methods: gateway/server.py overrides these"
    )


# ---------------------------------------------------------------- HTTP


async def test_a_connection_may_be_handed_to_the_http_protocol_late() -> None:
    """As Door does with all that is not its own."""

    class Late(asyncio.Protocol):
        def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
            self.given = config, server_state, app_state, asyncio.get_running_loop()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def data_received(self, data: bytes) -> None:
            protocol = HttpToolsProtocol(*self.given)
            self.transport.set_protocol(protocol)
            protocol.connection_made(self.transport)
            protocol.data_received(data)

    server = server_of(http=Late)
    async with serving(server), client(server) as peer:
        answer = await ask(peer, GET)
    assert answer.startswith(b"HTTP/1.1 200 "), "HttpToolsProtocol cannot be begun late any more: see Door._hand_over"


async def test_what_is_put_into_the_scope_of_a_request_reaches_the_application() -> None:
    def on_message_begin(self: Any) -> None:
        HttpToolsProtocol.on_message_begin(self)
        self.scope["extensions"] = {"said": b"at its beginning"}

    http, _ = noted(HttpToolsProtocol, on_message_begin=on_message_begin)
    server = server_of(http=http)
    async with serving(server), client(server) as peer:
        answers = [await ask(peer, GET) for _ in range(2)]
    assert all(answer.endswith(b"at its beginning") for answer in answers), (
        "a request's scope is no longer made in on_message_begin: HttpProtocol adds ringcast.abort and .drained there"
    )


async def test_a_request_that_was_answered_leaves_its_connection_as_it_is_described() -> None:
    told: list[str] = []

    def note(name: str) -> Callable[[Any], None]:
        def method(self: Any) -> None:
            told.append(name)
            getattr(HttpToolsProtocol, name)(self)

        return method

    names = ("on_message_begin", "on_headers_complete", "on_message_complete")
    http, made = noted(HttpToolsProtocol, **{name: note(name) for name in names})
    server = server_of(http=http)
    async with serving(server), client(server) as peer:
        await ask(peer, GET)
        (protocol,) = made
        assert told == list(names), "uvicorn's parser tells of a request by other methods: HttpProtocol bounds its head"
        assert protocol.cycle is not None and protocol.cycle.response_complete is True, (  # noqa: PT018 - one sentence
            "HttpToolsProtocol.cycle.response_complete is gone: HttpProtocol.data_received looks at it"
        )
        assert protocol in server.server_state.connections is protocol.connections, (
            "a protocol is no longer among the server's connections: HttpProtocol._next_door takes it out"
        )
        for name in ("config", "server_state", "app_state", "loop", "transport"):
            assert hasattr(protocol, name), f"HttpToolsProtocol.{name} is gone: HttpProtocol._next_door needs it"
        assert protocol.timeout_keep_alive_task is not None, "an idle connection has no deadline any more"
        protocol._unset_keepalive_if_required()
        assert protocol.timeout_keep_alive_task is None, (
            "_unset_keepalive_if_required no longer ends it: what was handed on would be closed by the old protocol"
        )


async def test_what_is_drained_by_http_waits_for_a_paused_transport() -> None:
    http, made = noted(HttpToolsProtocol)
    server = server_of(http=http)
    async with serving(server), client(server) as peer:
        await ask(peer, GET)
        protocol = made[0]
        await waits(protocol, protocol.flow.drain, "HttpToolsProtocol.flow.drain")


async def waits(protocol: Any, drained: Callable[[], Awaitable[Any]], name: str) -> None:
    protocol.pause_writing()
    waiting = asyncio.ensure_future(drained())
    await asyncio.sleep(0.05)
    assert not waiting.done(), f"{name} no longer waits while writing is paused: ringcast.drained is made of it"
    protocol.resume_writing()
    async with asyncio.timeout(10):
        await waiting


# ---------------------------------------------------------------- WebSocket


async def test_what_is_put_into_the_scope_of_a_handshake_reaches_the_application() -> None:
    def handle_connect(self: Any, event: Any) -> None:
        WebSocketsSansIOProtocol.handle_connect(self, event)
        if self.handshake_initiated and not self.close_sent:
            self.scope["extensions"]["said"] = b"in the handshake"

    ws, made = noted(WebSocketsSansIOProtocol, handle_connect=handle_connect)
    server = server_of(ws=ws)
    async with serving(server), client(server) as peer:
        answer = await ask(peer, UPGRADE)
        assert b"in the handshake" in answer, (
            "handle_connect no longer leaves a scope with extensions: WebSocketProtocol adds ringcast.abort there"
        )
        await waits(made[0], made[0].writable.wait, "WebSocketsSansIOProtocol.writable")


async def test_a_handshake_that_cannot_be_parsed_is_left_to_us() -> None:
    ws, _ = noted(WebSocketsSansIOProtocol)
    server = server_of(http=straight(ws))
    async with serving(server), client(server) as peer:
        peer[1].write(b"GET / HTTP/1.1\r\nbroken\r\n\r\n")
        protocol = await heard(server)
        assert protocol.conn.handshake_exc is not None, "conn.handshake_exc is gone: WebSocketProtocol looks at it"
        assert protocol.handshake_initiated is False, "handshake_initiated no longer tells what was understood"
        assert not protocol.transport.is_closing(), "uvicorn ends it by itself: WebSocketProtocol.data_received can go"
        assert all(isinstance(data, bytes) for data in protocol.conn.data_to_send()), "data_to_send gives other things"


async def test_a_text_is_whole_before_it_is_passed_on() -> None:
    seen: list[tuple[str, bytes]] = []

    def send_receive_event_to_app(self: Any) -> None:
        seen.append((self.curr_msg_data_type, b"".join(self.frames)))
        WebSocketsSansIOProtocol.send_receive_event_to_app(self)

    ws, _ = noted(WebSocketsSansIOProtocol, send_receive_event_to_app=send_receive_event_to_app)
    server = server_of(ws=ws)
    async with serving(server), client(server) as peer:
        await ask(peer, UPGRADE)
        peer[1].write(b"\x01\x83\0\0\0\0abc" + b"\x80\x83\0\0\0\0def")
        async with asyncio.timeout(10):
            while not seen:  # noqa: ASYNC110 - it is a list
                await asyncio.sleep(0.01)
    assert seen == [("text", b"abcdef")], (
        "a message's parts are no longer in `frames` before send_receive_event_to_app: there UTF-8 is checked"
    )
    assert hasattr(WebSocketsSansIOProtocol, "handle_parser_exception"), "what is no UTF-8 is ended by it"


async def test_a_ping_that_is_not_answered_is_told_by_keepalive_timeout() -> None:
    late = asyncio.Event()

    def keepalive_timeout(self: Any) -> None:
        self.pong_timer = None
        self.schedule_ping()
        late.set()

    ws, made = noted(WebSocketsSansIOProtocol, keepalive_timeout=keepalive_timeout)
    server = server_of(ws=ws, ws_ping_interval=0.05, ws_ping_timeout=0.05)
    async with serving(server), client(server) as peer:
        await ask(peer, UPGRADE)
        try:
            async with asyncio.timeout(10):
                await late.wait()
        except TimeoutError:
            pytest.fail("an unanswered ping is found by another method: WebSocketProtocol overrides keepalive_timeout")
        assert made[0].read_paused is False, "read_paused is gone: a peer that is not read is not taken for dead"
        assert made[0].ping_timer is not None, "schedule_ping no longer sets off the next ping"


def straight(ws: Any) -> Any:
    """An HTTP protocol that hands every connection to the WebSocket one at once."""

    class Straight(asyncio.Protocol):
        def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
            self.protocol = ws(config=config, server_state=server_state, app_state=app_state)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.set_protocol(self.protocol)
            self.protocol.connection_made(transport)

    return Straight


async def heard(server: uvicorn.Server) -> Any:
    """The server's only connection, once it has been sent something."""
    async with asyncio.timeout(10):
        while True:
            for protocol in server.server_state.connections:
                if protocol.conn.handshake_exc is not None or protocol.handshake_initiated:  # type: ignore[union-attr]
                    return protocol
            await asyncio.sleep(0.01)
