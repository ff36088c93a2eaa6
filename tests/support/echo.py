"""A WebSocket server that sends back what it is sent, on the gateway's own protocol class."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from gateway.app import create_app
from gateway.auth import Credentials
from gateway.head import Head
from gateway.settings import Settings
from gateway.transports.frames import frame
from gateway.transports.native import Native
from gateway.transports.native_websocket import WebSocketLine, is_handshake


class Echo(WebSocketLine):
    """Everything is the gateway's but what a message means: anybody may connect, and hears himself."""

    __slots__ = ()

    def _begin(self, head: Head, credentials: Credentials) -> None:
        self.transport.write(self.switching(head))

    def on_message(self, opcode: int, payload: bytes) -> None:
        self.transport.write(frame(opcode, payload))


class Reception(asyncio.Protocol):
    """Reads a handshake, and leaves the connection to an Echo."""

    def __init__(self, native: Native) -> None:
        self._native = native
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if b"\r\n\r\n" in self._buffer:
            found = Head.parse(self._buffer, "127.0.0.1", "ws")
            assert found is not None
            head, size = found
            assert is_handshake(head)
            echo = Echo(self._native, self._transport, head)
            if self._buffer[size:]:
                echo.data_received(self._buffer[size:])


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    """Its URL."""
    app = create_app(Settings())
    native = Native(app.state.node, CORSMiddleware(app), set(), list)
    server = await asyncio.get_running_loop().create_server(lambda: Reception(native), "127.0.0.1", 0)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
