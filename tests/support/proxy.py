"""A small reverse proxy that misbehaves on demand: what stands between a client and the gateway in the wild.

Plain TCP relaying with as much HTTP as it takes to tell paths apart: the head of the first request on each connection
is read, and `Connection: close` is asked for unless it is an upgrade, so that every request gets its own connection.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from contextlib import suppress
from http import HTTPStatus
from types import TracebackType
from typing import Self

_HEAD = 64 << 10  # bytes of a request's head at most
_CHUNK = 64 << 10


class Proxy:
    """A reverse proxy in front of `port`; use it as an async context manager.

    Paths are told by prefix, and each fault stays until `heal`.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.upstream = (host, port)
        self.port = 0
        self.requests: list[str] = []  # the request line of each, for a test to read
        self._blocked: dict[str, int] = {}
        self._stalled: set[str] = set()
        self._buffered: set[str] = set()
        self._patience: dict[str, float] = {}
        self._delayed: dict[str, tuple[float, asyncio.Event]] = {}  # seconds, or until it is healed
        self._frozen: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._writers: dict[asyncio.StreamWriter, str] = {}  # every open connection, and its path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def block(self, path: str, status: int = 403) -> None:
        """Answer requests of this path with `status` and a page of the proxy's own, as a firewall would."""
        self._blocked[path] = status

    def stall(self, path: str) -> None:
        """Take requests of this path and never answer."""
        self._stalled.add(path)

    def buffer(self, path: str) -> None:
        """Pass on the head of an answer, hold back its body: what a buffering proxy does to an event stream."""
        self._buffered.add(path)

    def limit(self, path: str, seconds: float) -> None:
        """Answer 504 where the gateway has not begun to answer a request of this path within `seconds`."""
        self._patience[path] = seconds

    def delay(self, path: str, seconds: float) -> None:
        """Let each request of this path wait so long, or until `heal`, before it goes on: a slow network."""
        self._delayed[path] = (seconds, asyncio.Event())

    def heal(self, path: str) -> None:
        """Let this path be, from the next request on."""
        self._patience.pop(path, None)
        _, healed = self._delayed.pop(path, (0, asyncio.Event()))
        healed.set()
        self._blocked.pop(path, None)
        self._stalled.discard(path)
        self._buffered.discard(path)

    def cut(self, path: str = "") -> None:
        """Drop the open connections whose path begins with `path`, on both sides and with no goodbye."""
        for writer in [writer for writer, of in self._writers.items() if of.startswith(path)]:
            writer.transport.abort()

    def freeze(self, path: str = "") -> None:
        """Let nothing through the open connections of this path any more, and tell neither side: a dead cable."""
        self._frozen.update(writer for writer, of in self._writers.items() if of.startswith(path))

    async def refuse(self) -> None:
        """Take no more connections, and cut those there are: to a client, the host is gone."""
        if self._server is not None:
            self._server.close()
            for path in list(self._delayed):
                self.heal(path)
            self.cut()
            await asyncio.gather(*self._tasks)
            await self._server.wait_closed()
            self._server = None

    async def accept(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=_HEAD)
        self.port = self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            # A browser opens connections ahead of need, and closes them unused.
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._request(reader, writer)
        finally:
            self._forget(writer)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers[writer] = ""
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head[:-4].decode("latin-1").split("\r\n")
        path = line.split(" ")[1]
        self.requests.append(line)
        self._writers[writer] = path
        status = _match(self._blocked, path)
        if status is not None:
            body = b"blocked by the proxy\n"
            writer.write(
                b"HTTP/1.1 %d %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
                % (self._blocked[status], HTTPStatus(self._blocked[status]).phrase.encode(), len(body), body)
            )
            await writer.drain()
            return
        if _match(self._stalled, path) is not None:
            while await reader.read(_CHUNK):
                pass
            return
        slow = _match(self._delayed, path)
        if slow is not None:
            seconds, healed = self._delayed[slow]
            with suppress(TimeoutError):
                await asyncio.wait_for(healed.wait(), seconds)
        if not any(field.lower().startswith("upgrade:") for field in fields):
            fields = [field for field in fields if not field.lower().startswith("connection:")] + ["Connection: close"]
        try:
            upstream_reader, upstream = await self._connect()
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        self._writers[upstream] = path
        try:
            upstream.write("\r\n".join([line, *fields, "", ""]).encode("latin-1"))
            limit = _match(self._patience, path)
            if limit is not None:
                try:
                    async with asyncio.timeout(self._patience[limit]):
                        writer.write(await upstream_reader.readuntil(b"\r\n"))
                except TimeoutError:
                    writer.write(b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    await writer.drain()
                    return
            await self._relay(reader, writer, upstream_reader, upstream, _match(self._buffered, path) is not None)
        finally:
            self._forget(upstream)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The way on for one request. Raises OSError."""
        return await asyncio.open_connection(*self.upstream)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
        upstream_reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, buffered: bool,
    ) -> None:  # fmt: skip
        """Both ways until either side ends; then both have ended."""
        up = asyncio.create_task(self._pump(reader, upstream))
        down = asyncio.create_task(self._pump(upstream_reader, writer, held_back=buffered))
        both = (up, down)
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if writer in self._frozen:
                await asyncio.wait({up})  # not even the end comes through; the client has to give up by itself
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, held_back: bool = False) -> None:
        if held_back:
            sink.write(await source.readuntil(b"\r\n\r\n"))
        while data := await source.read(_CHUNK):
            if not held_back and sink not in self._frozen:
                sink.write(data)
                await sink.drain()

    def _forget(self, writer: asyncio.StreamWriter) -> None:
        self._writers.pop(writer, None)
        self._frozen.discard(writer)
        writer.close()


class RoundRobin(Proxy):
    """Hands each request to the next of several nodes; where that takes no connection, to the one after it."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__(ports[0])
        self._count = len(ports)
        self._turn = itertools.cycle(ports)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        refusal = OSError("there is no node")
        for _ in range(self._count):
            try:
                return await asyncio.open_connection(self.upstream[0], next(self._turn))
            except OSError as error:
                refusal = error
        raise refusal


def _match(paths: Iterable[str], path: str) -> str | None:
    return next((prefix for prefix in paths if path.startswith(prefix)), None)
