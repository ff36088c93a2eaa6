"""The wires between a broker and its store: plain TCP relays that misbehave on demand, wherever the broker connects to.

    async with Wires() as wires, store.node() as (ann, _), wires.node(store) as (bob, watcher):
        wires.freeze()
        await beside(publish(ann, "topic:news"))

What connects inside `wires.node` goes through a relay, also to servers that other servers named; what was there before
it, or runs `beside` it, does not. Faults stay until `heal`; connections that were frozen stay dead after it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeVar

from gateway.brokers.base import Broker
from tests.support.deployments import Deployment, Watcher

T = TypeVar("T")
_wires: contextvars.ContextVar[Wires | None] = contextvars.ContextVar("wires", default=None)
_CHUNK = 64 << 10
JUNK = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


async def beside(work: Coroutine[Any, Any, T]) -> T:
    """Run this with no wires around it."""
    return await asyncio.create_task(work, context=contextvars.Context())


class Wires:
    def __init__(self) -> None:
        self._relays: dict[tuple[str, int], Relay] = {}
        self.opened = 0  # connections so far
        self.deaf_at: Callable[[bytes], bool] = lambda _: False
        self.flows = asyncio.Event()
        self.flows.set()
        self.refusing = self.frozen = self.babbling = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._connect = self._loop.create_connection
        self._loop.create_connection = self._connect_through  # type: ignore[assignment]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._loop.create_connection = self._connect  # type: ignore[method-assign]
        for relay in self._relays.values():
            await relay.close()

    @asynccontextmanager
    async def node(self, store: Deployment, **changes: Any) -> AsyncIterator[tuple[Broker, Watcher]]:
        async with self.around(), store.node(**changes) as node:
            yield node

    @asynccontextmanager
    async def around(self) -> AsyncIterator[None]:
        """All that connects in here goes through the wires."""
        token = _wires.set(self)
        try:
            yield
        finally:
            _wires.reset(token)

    async def _connect_through(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        wires = _wires.get()
        if wires is None or host is None:
            return await self._connect(factory, host, port, **options)
        if wires.refusing:
            raise ConnectionRefusedError("the wires refuse")
        relay = wires._relays.get((host, port))
        if relay is None:
            relay = wires._relays[host, port] = Relay(wires, host, port)
            await relay.open()
        await relay.opened.wait()
        if options.get("ssl"):
            options.setdefault("server_hostname", host)
        return await self._connect(factory, "127.0.0.1", relay.port, **options)

    # ---------------------------------------------------------------- faults

    def cut(self) -> None:
        """End every connection, on both sides."""
        for relay in self._relays.values():
            relay.cut()

    def refuse(self) -> None:
        """Nobody is there any more."""
        self.refusing = True
        self.cut()

    def freeze(self) -> None:
        """Swallow what is sent both ways, and tell neither side: half-open links, and new ones are no better."""
        self.frozen = True
        for relay in self._relays.values():
            relay.frozen.update(relay.writers)

    def deafen(self, at: Callable[[bytes], bool]) -> None:
        """From the first answer on for which `at` holds, swallow all answers on the connections that there are."""
        self.deaf_at = at

    def stall(self) -> None:
        """Hold everything back, to be passed on later."""
        self.flows.clear()

    def babble(self) -> None:
        """Something else answers: it sends what is no answer to anything."""
        self.babbling = True
        for relay in self._relays.values():
            for writer in relay.downs:
                writer.write(JUNK)

    def heal(self) -> None:
        if self.babbling:
            self.cut()
        self.refusing = self.frozen = self.babbling = False
        self.flows.set()


class Relay:
    """To one server."""

    def __init__(self, wires: Wires, host: str, port: int) -> None:
        self.wires = wires
        self.target = (host, port)
        self.port = 0
        self.opened = asyncio.Event()
        self.writers: set[asyncio.StreamWriter] = set()
        self.downs: set[asyncio.StreamWriter] = set()  # of them, those towards the broker
        self.frozen: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.opened.set()

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.wires.opened += 1
        self._keep(writer)
        self.downs.add(writer)
        _wires.set(None)
        upstream: asyncio.StreamWriter | None = None
        try:
            with suppress(OSError):
                upstream_reader, upstream = await asyncio.open_connection(*self.target)
                self._keep(upstream)
                if self.wires.babbling:
                    writer.write(JUNK)
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, upstream))
                    both.create_task(self._pump(upstream_reader, writer))
        except* OSError:
            pass  # one side is gone, and then the other
        except* asyncio.CancelledError:
            pass  # by `close`; asyncio's server would log it as a fault
        finally:
            for each in (writer, upstream):
                if each is not None:
                    self.writers.discard(each)
                    self.downs.discard(each)
                    self.frozen.discard(each)
                    each.transport.abort()

    def _keep(self, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        if self.wires.frozen:
            self.frozen.add(writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            await self.wires.flows.wait()
            if sink in self.downs and self.wires.deaf_at(data):
                self.wires.deaf_at = lambda _: False
                for relay in self.wires._relays.values():
                    relay.frozen.update(relay.downs)
            if sink not in self.frozen:
                sink.write(data)
                await sink.drain()
        if sink in self.frozen:
            await asyncio.Event().wait()  # not even the end comes through
        raise ConnectionResetError
