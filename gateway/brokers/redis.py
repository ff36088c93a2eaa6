"""Redis and Valkey: one server, Sentinel or Cluster. Pub/sub carries live messages, streams and hashes keep them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from gateway.brokers import redis_store as store
from gateway.brokers.base import Events, Page, Receipt, Snapshot
from gateway.brokers.chain import Chain
from gateway.brokers.redis_calls import AWAY, WITHIN, Calls, away
from gateway.brokers.redis_live import Address, LiveConnection, LiveError
from gateway.brokers.redis_servers import Servers, Url
from gateway.errors import Problem
from gateway.message import Draft, partition_of
from gateway.settings import ConfigError, Settings

log = logging.getLogger("ringcast.redis")

PING = 1.0  # seconds of silence after which a live connection is asked for a sign of life
BATCH = 200  # publishes that share a pipeline
QUEUE = 10_000  # that wait for one at most
PATIENCE = 5.0  # seconds that a publish waits at most, also where the store answers but never settles
CHECKED = 256  # partitions that share one
GRACE = 1.0  # seconds that a message may take from the store to here before it counts as lost
BACKOFF = 2.0  # seconds between two attempts to reach the store, at most


class RedisBroker:
    """A node's connections to the store: a pool for commands, and for each server one that listens."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError for a URL that cannot work."""
        self.settings = settings
        self.url = Url.parse(settings.broker)
        self.names = store.Names(self.url.prefix, settings.partitions)
        self._servers = Servers(self.url, WITHIN)
        self._calls = Calls(self._servers.client)
        self._chain: Chain | None = None
        self._started = asyncio.Event()
        self._connected = False
        self._live: dict[Address, LiveConnection] = {}
        self._at: dict[int, Address] = {}  # where each followed partition is listened to
        self._homeless: set[int] = set()
        self._nudged = asyncio.Event()
        self._queue: list[tuple[Draft, asyncio.Future[Receipt]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()  # an answer is about the claims that were made last

    @classmethod
    def open(cls, settings: Settings) -> RedisBroker:
        return cls(settings)

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def chain(self) -> Chain:
        if self._chain is None:
            raise Problem("unavailable", "The node is starting: try again in a second", retry_after=1)
        return self._chain

    def partition(self, channel: str) -> int:
        return partition_of(channel, self.settings.partitions)

    async def position_at(self, channel: str, time: int) -> int:
        return time  # offsets are times

    async def start(self) -> None:
        try:
            await self._claim()
        except AWAY as error:
            log.warning("the store does not answer yet: %s", error)

    async def _claim(self) -> None:
        """What a node must agree on with the store and every other node. Raises ConfigError."""
        client: Any = self._servers.client
        meta = f"{self.url.prefix}:meta"
        await client.hsetnx(meta, "partitions", self.settings.partitions)
        partitions = int(await client.hget(meta, "partitions"))
        if partitions != self.settings.partitions:
            raise ConfigError(
                f"partitions: this deployment has {partitions} and this node {self.settings.partitions}; messages"
                " would be looked for in the wrong places: set the same number, or another prefix in the broker's URL"
            )
        memory = await client.info("memory")
        for found in [memory] if "maxmemory_policy" in memory else memory.values():
            if found["maxmemory_policy"] != "noeviction":
                raise ConfigError(
                    f"broker: Redis has maxmemory-policy {found['maxmemory_policy']} and would drop messages in"
                    " silence: set it to noeviction"
                )

    # ---------------------------------------------------------------- live

    async def run(self, events: Events) -> None:
        self._chain = Chain(events)
        self._started.set()
        attempts = 0
        try:
            while True:
                began = asyncio.get_running_loop().time()
                try:
                    await self._listen()
                except AWAY as error:
                    log.warning("the connection to Redis is lost: %s", error or type(error).__name__)
                finally:
                    self._connected = False
                    for live in self._live.values():
                        live.close()
                    self._live.clear()
                    self._at.clear()
                if asyncio.get_running_loop().time() - began > 10:
                    attempts = 0
                attempts += 1
                await asyncio.sleep(random.uniform(0, min(BACKOFF, 0.05 * 2**attempts)))  # noqa: S311
                with suppress(*AWAY):
                    async with asyncio.timeout(WITHIN):
                        await self._servers.refresh()
        finally:
            self._started.clear()
            self._chain = None

    async def _listen(self) -> None:
        """Connect, subscribe, check; then see to it that all of it stays so. Ends by raising."""
        chain, loop = self.chain, asyncio.get_running_loop()
        await self._calls.load()
        await self._place(chain.followed)
        chain.suspect(chain.followed)
        await self._ask(chain.due)
        self._connected = True
        overdue_at = loop.time() + GRACE
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE / 4):
                    await self._nudged.wait()
            self._nudged.clear()
            self._stay_alive(loop.time())
            if self._homeless:
                lost, self._homeless = self._homeless, set()
                await self._servers.refresh()
                await self._place(lost)
                chain.suspect(lost)
            if loop.time() >= overdue_at:
                chain.overdue()
                overdue_at = loop.time() + GRACE
            if chain.due:
                await self._ask(chain.due)

    def _stay_alive(self, now: float) -> None:
        for address, live in self._live.items():
            if live.closed.done():
                raise LiveError(f"{address} closed the connection")
            if now - live.heard_at > PING + WITHIN:
                raise LiveError(f"{address} has been silent")
            if now - live.heard_at > PING:
                live.ping()

    async def _place(self, partitions: Iterable[int]) -> None:
        """Subscribe to partitions where their messages are announced. Raises what says that the store is away."""
        slots = {partition: partition * store.SLOTS // self.settings.partitions for partition in partitions}
        where = await self._servers.place(set(slots.values()))
        groups: dict[Address, list[int]] = {}
        for partition, slot in slots.items():
            groups.setdefault(where[slot], []).append(partition)
        if not groups and not self._live and not self._servers.sharded:
            groups = {next(iter((await self._servers.place([0])).values())): []}  # to know that the store is there
        for address, group in groups.items():
            if address not in self._live:
                self._live[address] = await LiveConnection.open(
                    address, self._servers.sharded, self._on_payload, self._on_lost, WITHIN
                )
            await self._live[address].subscribe([self.names.subject(p) for p in group], WITHIN)
            self._at.update(dict.fromkeys(group, address))

    def _on_payload(self, subject: bytes, payload: bytes) -> None:
        chain = self.chain
        chain.frame(store.decode_frame(self.names.partition_of_subject[subject], payload))
        if chain.due:
            self._nudged.set()

    def _on_lost(self, subject: bytes) -> None:
        partition = self.names.partition_of_subject[subject]
        if partition in self.chain.followed:
            self._homeless.add(partition)
            self._nudged.set()

    async def subscribe(self, partitions: Collection[int]) -> None:
        await self._started.wait()
        chain = self.chain
        new = [partition for partition in partitions if partition not in chain.followed]
        if not self._connected:
            raise Problem("unavailable", "The store does not answer: try again soon", retry_after=1)
        for partition in new:
            chain.expect(partition)
        try:
            await self._place(new)
            await self._ask(new)
        except AWAY as error:
            for partition in new:
                chain.end(partition)
            raise away(error) from error

    async def unsubscribe(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.chain.end(partition)
            address = self._at.pop(partition, None)
            if address in self._live:
                self._live[address].unsubscribe([self.names.subject(partition)])

    # ---------------------------------------------------------------- checking

    async def check(self, partitions: Collection[int]) -> None:
        chain = self.chain
        try:
            await self._ask({*partitions, *chain.known}, live=True)
        except AWAY as error:
            raise away(error) from error

    async def _ask(self, partitions: Iterable[int], live: bool = False) -> None:
        """Tell the store what is known of these partitions, and go on from what it answers."""
        asked = list(partitions)
        for start in range(0, len(asked), CHECKED):
            async with self._asking:
                await self._ask_some(asked[start : start + CHECKED], live)

    async def _ask_some(self, partitions: list[int], live: bool) -> None:
        chain = self.chain
        calls = []
        for partition in partitions:
            claims = [word for claim in chain.claims(partition) for word in claim]
            calls.append((store.CHECK, [self.names.part(partition)], claims))
        for partition, answer in zip(partitions, await self._calls.run(calls), strict=True):
            if isinstance(answer, Exception):
                raise answer
            top, history = int(answer[0]), answer[1].decode()
            if live and answer[2] == b"0":
                chain.reported(partition, top, history)
            else:
                chain.answered(partition, top, history)

    # ---------------------------------------------------------------- publishing

    async def publish(self, draft: Draft) -> Receipt:
        """What is published at the same time shares a pipeline."""
        if len(self._queue) >= QUEUE:
            raise Problem("unavailable", "Too many publishes wait for the store: try again soon", retry_after=1)
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._queue.append((draft, future))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="redis publisher")
        try:
            async with asyncio.timeout(PATIENCE):
                return await future
        except TimeoutError as error:
            raise away(error) from error

    async def _flush(self) -> None:
        await asyncio.sleep(0)  # everything of this turn of the loop comes along
        while self._queue:
            batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
            batch = [(draft, future) for draft, future in batch if not future.done()]  # else nobody waits any more
            try:
                await self._publish(batch)
            except Exception as error:  # told to each publisher, and to nobody twice
                problem = away(error) if isinstance(error, AWAY) else error
                if isinstance(error, AWAY):  # whoever queued behind it does not find out one batch at a time
                    batch, self._queue = batch + self._queue, []
                for _, future in batch:
                    if not future.done():
                        future.set_exception(problem)

    async def _publish(self, batch: list[tuple[Draft, asyncio.Future[Receipt]]]) -> None:
        chain, settings = self.chain, self.settings
        places = [partition_of(draft.channel, settings.partitions) for draft, _ in batch]
        calls = []
        for (draft, _), partition in zip(batch, places, strict=True):
            keys, arguments = store.publish_call(
                self.names, partition, draft, settings.policy(draft.channel), chain.history(partition),
                settings.idempotency_window, self._servers.sharded,
            )  # fmt: skip
            calls.append((store.PUBLISH, keys, arguments))
        again: list[tuple[Draft, asyncio.Future[Receipt]]] = []
        strangers: set[int] = set()
        for (draft, future), partition, answer in zip(batch, places, await self._calls.run(calls), strict=True):
            if future.done():
                continue
            try:
                if isinstance(answer, Exception):
                    raise answer
                found = store.receipt(draft, answer)
            except Problem as problem:
                future.set_exception(problem)
            except RedisError as error:
                future.set_exception(away(error))
            else:
                if found is None:  # another server process: what is gone must be told before its place is taken
                    strangers.add(partition)
                    again.append((draft, future))
                else:
                    receipt, history = found
                    chain.acknowledged(partition, receipt.offset, history)
                    future.set_result(receipt)
        if strangers:
            await self._ask(strangers)
            self._queue[:0] = again

    # ---------------------------------------------------------------- reading

    async def read(self, channel: str, since: int, limit: int) -> Page:
        page, history = await self._page(channel, since, limit)
        if not await self._told(channel, page.top, history):
            page, _ = await self._page(channel, since, limit)
        return page

    async def _told(self, channel: str, top: int, history: str) -> bool:
        """Note what was read; False when it had to be checked, because it is less than this node was told."""
        partition = self.partition(channel)
        if self.chain.read(partition, top, history):
            return True
        try:
            await self._ask([partition])
        except AWAY as error:
            raise away(error) from error
        return False

    async def _page(self, channel: str, since: int, limit: int) -> tuple[Page, str]:
        policy, names = self.settings.policy(channel), self.names
        partition = partition_of(channel, self.settings.partitions)
        stream = names.log(partition, channel)
        pipeline: Any = self._servers.client.pipeline(transaction=True)
        self._tell_time(pipeline, names.part(partition))
        pipeline.hmget(names.part(partition), "floor", "top", "history")
        pipeline.xrevrange(stream, f"{since}-0", "-", count=1)
        pipeline.xrange(stream, f"({since}-0", "+", count=limit + 1)
        if policy.slow == "latest":
            pipeline.hgetall(names.keys(partition, channel))
        (seconds, micros), part, held, after, *table = await self._calls.view(pipeline, self.names.part(partition))
        now = int(seconds) * 1_000_000 + int(micros)
        keys = table[0] if table else {}
        page = store.page(channel, since, limit, self.settings.page_bytes, policy, now, part, held, after, keys)
        return page, part[2].decode()

    async def snapshot(self, channel: str) -> Snapshot:
        snapshot, history = await self._snapshot(channel)
        if not await self._told(channel, snapshot.offset, history):
            snapshot, _ = await self._snapshot(channel)
        return snapshot

    async def _snapshot(self, channel: str) -> tuple[Snapshot, str]:
        partition = partition_of(channel, self.settings.partitions)
        pipeline: Any = self._servers.client.pipeline(transaction=True)
        self._tell_time(pipeline, self.names.part(partition))
        pipeline.hmget(self.names.part(partition), "floor", "top", "history")
        pipeline.hgetall(self.names.keys(partition, channel))
        (seconds, micros), part, table = await self._calls.view(pipeline, self.names.part(partition))
        return store.snapshot(channel, int(seconds) * 1_000_000 + int(micros), part, table), part[2].decode()

    def _tell_time(self, pipeline: Any, part: bytes) -> None:
        """The store's clock, as the first answer of a view; on a cluster a key says whose."""
        if self._servers.sharded:
            pipeline.execute_command("EVAL", "return redis.call('TIME')", 1, part)
        else:
            pipeline.time()

    async def close(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        await self._servers.close()
