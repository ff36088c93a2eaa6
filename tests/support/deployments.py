"""Stores to run one suite against: each can be told to misbehave in the same few ways."""

from __future__ import annotations

import asyncio
import copy
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.brokers import open_broker
from gateway.brokers.base import Broker
from gateway.brokers.chain import Frame
from gateway.brokers.memory import MemoryBroker
from gateway.brokers.memory_store import MemoryStore, State
from gateway.message import Message, new_id
from gateway.settings import Settings
from tests.support.redis import RedisCluster, RedisSentinel, RedisServer


class Watcher:
    """Events that remember: what was told of each partition, in its order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, Any]] = []
        self._changed = asyncio.Event()

    def message(self, partition: int, message: Message) -> None:
        self._note("message", partition, message)

    def watermark(self, partition: int, offset: int) -> None:
        self._note("watermark", partition, offset)

    def gap(self, partition: int, offset: int) -> None:
        self._note("gap", partition, offset)

    def _note(self, kind: str, partition: int, what: Any) -> None:
        self.told.append((kind, partition, what))
        self._changed.set()

    def messages(self, channel: str) -> list[Message]:
        return [what for kind, _, what in self.told if kind == "message" and what.channel == channel]

    def gaps(self) -> list[int]:
        return [what for kind, _, what in self.told if kind == "gap"]

    async def until(self, condition: Any, within: float = 15.0) -> None:
        """Wait for what `condition` asks of this watcher; told at each event."""
        async with asyncio.timeout(within):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def knows(self, offset: int, within: float = 15.0) -> None:
        """Wait until the message of this offset was told, or a gap that covers it."""
        await self.until(
            lambda: any(
                (kind == "message" and what.offset == offset) or (kind == "gap" and what >= offset)
                for kind, _, what in self.told
            ),
            within,
        )


class Deployment(ABC):
    """A store that brokers of several nodes connect to."""

    partitions = 16

    def settings(self, **changes: Any) -> Settings:
        return Settings(**{"broker": self.url, "partitions": self.partitions, **changes})

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def broker(self, settings: Settings) -> Broker: ...

    @asynccontextmanager
    async def node(self, **changes: Any) -> AsyncIterator[tuple[Broker, Watcher]]:
        """A running broker with its watcher."""
        broker, watcher = self.broker(self.settings(**changes)), Watcher()
        await broker.start()
        running = asyncio.create_task(broker.run(watcher))
        try:
            async with asyncio.timeout(15):
                while not broker.connected:  # noqa: ASYNC110 - it is a property, as /readyz asks it
                    await asyncio.sleep(0.01)
            yield broker, watcher
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await broker.close()

    @abstractmethod
    async def open(self) -> None:
        """Begin, with nothing."""

    @abstractmethod
    async def wipe(self) -> None:
        """All is gone, and another process serves."""

    @abstractmethod
    async def restart(self) -> None:
        """Another process, and nothing is lost."""

    @abstractmethod
    async def copy(self) -> None:
        """Keep what is held now, for `go_back`."""

    @abstractmethod
    async def go_back(self) -> None:
        """Another process that holds what was copied: all that came after is lost."""

    @abstractmethod
    async def cut(self, broker: Broker) -> None:
        """Live messages reach this broker no longer, until it has noticed."""

    @abstractmethod
    async def close(self) -> None: ...


class Memory(Deployment):
    """One store of this process, and brokers beside each other on it."""

    url = "memory://"

    async def open(self) -> None:
        self.store = MemoryStore(self.settings())
        self._copy: State

    def broker(self, settings: Settings) -> Broker:
        self.store.settings = settings
        return MemoryBroker(self.store)

    async def wipe(self) -> None:
        self.store.begin()

    async def restart(self) -> None:
        self.store.history = new_id()

    async def copy(self) -> None:
        self._copy = copy.deepcopy(self.store.state)

    async def go_back(self) -> None:
        self.store.state, self.store.history = copy.deepcopy(self._copy), new_id()

    async def cut(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        listeners = self.store.listeners
        listeners.remove(broker.receive)

        def missed(frame: Frame) -> None:
            listeners[listeners.index(missed)] = broker.receive  # the next one arrives again

        listeners.append(missed)

    async def close(self) -> None:
        self.store.begin()


class RedisAlone(Deployment):
    """One redis-server."""

    async def open(self) -> None:
        self.server = RedisServer()
        await asyncio.to_thread(self.server.start)

    @property
    def url(self) -> str:
        return self.server.url

    def broker(self, settings: Settings) -> Broker:
        return open_broker(settings)

    async def wipe(self) -> None:
        await asyncio.to_thread(self.server.wipe)

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart)

    async def copy(self) -> None:
        await asyncio.to_thread(self.server.copy)

    async def go_back(self) -> None:
        await asyncio.to_thread(self.server.go_back)

    async def cut(self, broker: Broker) -> None:
        await asyncio.to_thread(self.server.cut)

    async def close(self) -> None:
        await asyncio.to_thread(self.server.close)


async def expire(store: Deployment) -> None:
    """Let go of what may go by its age: Redis keeps a log for a minute longer, for the sake of clocks that differ."""
    servers = (
        [store.server] if isinstance(store, RedisAlone)
        else store.cluster.servers if isinstance(store, RedisClustered)
        else [store.sentinel.master] if isinstance(store, RedisWatched) else []
    )  # fmt: skip
    for server in servers:
        with server.client() as client:
            client_: Any = client
            for name in client_.keys("ringcast:*:l:*"):
                if client_.pttl(name) <= 60_000:
                    client_.delete(name)


class RedisClustered(Deployment):
    """Three masters that share the partitions."""

    async def open(self) -> None:
        self.cluster = RedisCluster()
        await asyncio.to_thread(self.cluster.start)

    @property
    def url(self) -> str:
        return self.cluster.url

    def broker(self, settings: Settings) -> Broker:
        return open_broker(settings)

    async def _each(self, what: Any) -> None:
        for server in self.cluster.servers:
            await asyncio.to_thread(what, server)
        await asyncio.to_thread(self.cluster.agreed)

    async def wipe(self) -> None:
        await self._each(RedisServer.wipe)

    async def restart(self) -> None:
        await self._each(RedisServer.restart)

    async def copy(self) -> None:
        await self._each(RedisServer.copy)

    async def go_back(self) -> None:
        await self._each(RedisServer.go_back)

    async def cut(self, broker: Broker) -> None:
        await self._each(RedisServer.cut)

    async def close(self) -> None:
        await asyncio.to_thread(self.cluster.close)


class RedisWatched(Deployment):
    """A master with a replica, watched by Sentinels: what is another process elsewhere is the replica here."""

    async def open(self) -> None:
        self.sentinel = RedisSentinel()
        await asyncio.to_thread(self.sentinel.start)
        self._alone = False  # the replica took the master's place

    async def _paired(self) -> None:
        """See to it that there is a replica again."""
        if self._alone:
            await asyncio.to_thread(self.sentinel.rejoin)
            self._alone = False

    async def _promote(self) -> None:
        await asyncio.to_thread(self.sentinel.promote)
        self._alone = True

    @property
    def url(self) -> str:
        return self.sentinel.url

    def broker(self, settings: Settings) -> Broker:
        return open_broker(settings)

    async def wipe(self) -> None:
        await self._paired()
        await asyncio.to_thread(self.sentinel.detach, True)
        await self._promote()

    async def restart(self) -> None:
        await self._paired()
        await asyncio.to_thread(self.sentinel.fail_over)

    async def copy(self) -> None:
        await self._paired()
        await asyncio.to_thread(self.sentinel.detach)

    async def go_back(self) -> None:
        await self._promote()

    async def cut(self, broker: Broker) -> None:
        await asyncio.to_thread(self.sentinel.master.cut)

    async def close(self) -> None:
        await asyncio.to_thread(self.sentinel.close)
