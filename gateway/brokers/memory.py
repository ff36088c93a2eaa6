"""The reference broker and the default: one process's memory. A restart is a new store."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence

from gateway.brokers.base import Counts, Events, Page, Receipt, Snapshot
from gateway.brokers.chain import Chain, Frame
from gateway.brokers.memory_store import MemoryStore
from gateway.errors import Problem
from gateway.message import Draft
from gateway.settings import Settings

INBOX = 100_000  # frames announced and not looked at yet; the next one is lost, and the chain tells
SWEEP = 1.0  # seconds between two looks for what has expired
SWEPT = 500  # at a time, so that a node whose channels all expire at once stays responsive


class MemoryBroker:
    """A node's connection to a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.counts = Counts()
        self.ids_used: Callable[[], int] = lambda: store.state.ids.bytes
        self.homes: Callable[[], Collection[int]] = lambda: range(store.settings.partitions)  # it is alone
        self.publish_now: Callable[[Draft], Receipt] | None = self._publish
        self._chain: Chain | None = None
        self._inbox: deque[Frame] = deque()
        self._wake = asyncio.Event()
        self._started = asyncio.Event()

    @classmethod
    def open(cls, settings: Settings) -> MemoryBroker:
        return cls(MemoryStore(settings))

    @property
    def connected(self) -> bool:
        return self._chain is not None

    @property
    def chain(self) -> Chain:
        if self._chain is None:
            raise Problem("unavailable", "the memory store is not running; try again in a second", retry_after=1)
        return self._chain

    def partition(self, channel: str) -> int:
        return self.store.partition(channel)

    async def start(self) -> None:
        """There is nothing to find out."""

    async def run(self, events: Events) -> None:
        self._chain = Chain(events)
        self.store.listeners.append(self.receive)
        self._started.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_sweeping(), name="memory sweep")
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    self.drain()
        finally:
            self.store.listeners.remove(self.receive)
            self._inbox.clear()
            self._started.clear()
            self._chain = None

    async def _keep_sweeping(self) -> None:
        more = False
        while True:
            await asyncio.sleep(0 if more else SWEEP)
            more = self.store.sweep(SWEPT)

    def receive(self, frame: Frame) -> None:
        """The store calls this for each message it stored."""
        if len(self._inbox) < INBOX:
            self._inbox.append(frame)
            self._wake.set()

    def drain(self) -> None:
        """Everything announced so far goes through the chain; the partitions in which it broke are checked."""
        chain = self.chain
        while self._inbox or chain.due:
            while self._inbox:
                chain.frame(self._inbox.popleft())
            for partition in list(chain.due):
                self._check(partition)

    def _check(self, partition: int) -> None:
        chain, before = self.chain, self.store.part(partition).announced
        chain.answered(partition, *self.store.check(partition, chain.claims(partition)))
        self.counts.losses += self.store.part(partition).announced != before

    async def subscribe(self, partitions: Collection[int]) -> None:
        await self._started.wait()
        for partition in partitions:
            if partition not in self.chain.followed:
                self.chain.begin(partition, *self.store.check(partition, self.chain.claims(partition)))

    async def unsubscribe(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.chain.end(partition)

    async def publish(self, draft: Draft) -> Receipt:
        return self._publish(draft)

    async def publish_all(self, drafts: Sequence[Draft]) -> list[Receipt | Exception]:
        found: list[Receipt | Exception] = []
        for draft in drafts:
            try:
                found.append(self._publish(draft))
            except Problem as problem:
                found.append(problem)
        return found

    def _publish(self, draft: Draft) -> Receipt:
        partition, chain, history = self.partition(draft.channel), self.chain, self.store.history
        if chain.history(partition) not in ("", history):
            self._check(partition)  # another store process: what is gone must be told before its place is taken
        receipt = self.store.publish(draft)
        chain.acknowledged(partition, receipt.offset, history)
        return receipt

    async def read(self, channel: str, since: int, limit: int) -> Page:
        page = self.store.read(channel, since, limit)
        if not self._told(channel, page.top):
            page = self.store.read(channel, since, limit)
        return page

    async def snapshot(self, channel: str) -> Snapshot:
        snapshot = self.store.snapshot(channel)
        if not self._told(channel, snapshot.offset):
            snapshot = self.store.snapshot(channel)
        return snapshot

    def _told(self, channel: str, top: int) -> bool:
        """Note what was read; False when it had to be checked, because it is less than this node was told."""
        partition = self.partition(channel)
        if self.chain.read(partition, top, self.store.history):
            return True
        self._check(partition)
        return False

    async def position_at(self, channel: str, time: int) -> int:
        return time  # offsets are times

    async def check(self, partitions: Collection[int]) -> None:
        self.drain()
        for partition in {*partitions, *self.chain.known}:
            self._check(partition)

    async def close(self) -> None:
        self._inbox.clear()
