"""A line from a node to its store that can break in the ways networks do, and lead to another server from then on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Self, cast


class Cable:
    """Relays TCP from a port of its own to `far`; use it as an async context manager.

    `room` is about how many bytes the kernel may hold at each of its ends; None for as many as it likes.
    """

    def __init__(self, far: int, *, room: int | None = None) -> None:
        self.far = far  # the port that new connections lead to
        self.room = room
        self.port = 0
        self.drop: Callable[[bytes], bool] = lambda _: False  # asked of each piece that comes from the store
        self.dropped = 0
        self._swallowing = False
        self._ends: set[_End] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def swallow(self) -> None:
        """Take every byte of both directions and pass none on; connections stay, and new ones are taken too."""
        self._swallowing = True
        for end in self._ends:
            end.dead = True

    def heal(self) -> None:
        """New connections work again. Those that lost bytes stay as silent as they are: to both sides half open."""
        self._swallowing = False

    def cut(self) -> None:
        """End every connection, on both sides."""
        for end in list(self._ends):
            end.transport.abort()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        end = self._socket()
        end.bind(("127.0.0.1", 0))
        self._server = await loop.create_server(lambda: _End(self), sock=end)
        self.port = end.getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        self.cut()
        await self._server.wait_closed()

    def made(self, end: _End) -> None:
        self._ends.add(end)
        end.dead = self._swallowing
        if end.other is None:
            task = asyncio.ensure_future(self._lead_on(end))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def lost(self, end: _End) -> None:
        self._ends.discard(end)

    async def _lead_on(self, near: _End) -> None:
        if near.dead:
            return
        loop, end = asyncio.get_running_loop(), self._socket()
        try:
            await loop.sock_connect(end, ("127.0.0.1", self.far))
            await loop.create_connection(lambda: _End(self, near), sock=end)
        except (OSError, asyncio.CancelledError):  # of the latter the task ends, too
            end.close()
            near.transport.abort()

    def _socket(self) -> socket.socket:
        """Not blocking; a listening one's room is that of its connections."""
        end = socket.socket()
        end.setblocking(False)
        if self.room is not None:
            for which in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, which, self.room // 2)
        return end


class _End(asyncio.Protocol):
    """One side of a connection; the near one's bytes wait until there is a far one."""

    def __init__(self, cable: Cable, near: _End | None = None) -> None:
        self.cable = cable
        self.other = near
        self.far = near is not None
        self.dead = False
        self.transport: asyncio.Transport
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.cable.made(self)
        near = self.other
        if near is not None:
            near.other = self
            if near.transport.is_closing():
                self.transport.abort()
            self.transport.writelines(near._early)
            near._early.clear()

    def data_received(self, data: bytes) -> None:
        if self.dead:
            return
        if self.far and self.cable.drop(data):
            self.cable.dropped += 1
        elif self.other is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        """Whoever stops reading holds up the other side, as without a cable; little waits in here."""
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.cable.lost(self)
        if self.other is not None and not self.dead:
            self.other.transport.close()
