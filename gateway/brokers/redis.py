"""Redis and Valkey: one server, Sentinel or Cluster. Pub/sub carries live messages, streams and hashes keep them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

from gateway.brokers import redis_store as store
from gateway.brokers.base import Counts, Events, Page, Receipt, Snapshot
from gateway.brokers.cancelled import raise_if_cancelled
from gateway.brokers.chain import UNKNOWN, Chain
from gateway.brokers.redis_calls import AWAY, WITHIN, Calls, away, refusal
from gateway.brokers.redis_live import Address, LiveConnection, LiveError
from gateway.brokers.redis_policies import RedisPolicies
from gateway.brokers.redis_servers import Servers, Url
from gateway.brokers.redis_sweep import Sweep
from gateway.brokers.redis_writer import Writer
from gateway.errors import Problem
from gateway.message import Draft, partition_of
from gateway.settings import ConfigError, Settings

log = logging.getLogger("ringcast.redis")

PING = 1.0  # seconds of silence after which a live connection is asked for a sign of life
CHECKED = 256  # partitions that share one
GRACE = 1.0  # seconds that a message may take from the store to here before it counts as lost
AGREE = 5.0  # seconds between two looks whether another node has brought another policy
SWEEP = 1.0  # seconds between two looks for keys whose time is over
BACKOFF = 2.0  # seconds between two attempts to reach the store, at most


class RedisBroker:
    """A node's connections to the store: a pool for commands, and for each server one that listens."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError for a URL that cannot work."""
        self.settings = settings
        self.url = Url.parse(settings.broker)
        self.names = store.Names(self.url.prefix, settings.partitions)
        self._servers = Servers(self.url, WITHIN)
        self._calls = Calls(self._servers, self._on_replica)
        self._chain: Chain | None = None
        self._started = asyncio.Event()
        self._connected = False
        self._live: dict[Address, LiveConnection] = {}
        self._at: dict[int, Address] = {}  # where each followed partition is listened to
        self._homeless: set[int] = set()
        self._replica = False  # a server that was asked to write is no master any more
        self._nudged = asyncio.Event()
        self.policies = RedisPolicies(settings, self.names, self._servers.client, self._calls)
        self._writer = Writer(settings, self.names, self._servers, self._calls, lambda: self.chain, self._ask,
                              self.policies, lambda channel: self._sweep.crowd(channel))  # fmt: skip
        self._sweep = Sweep(self.names, self._servers.client, self._calls, self.policies.of, self._writer.publish)
        self.counts = Counts()
        self.publish_all, self.publish_now = self._writer.publish_all, None
        self.ids_used: Callable[[], int] = lambda: self._writer.ids.bytes
        self.homes: Callable[[], Collection[int]] = lambda: range(settings.partitions)
        self._asking = asyncio.Lock()  # an answer is about the claims that were made last
        self._placing = asyncio.Lock()  # one connection to each server, which is watched: whoever comes first opens it

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
            if (why := refusal(error)) is not None:
                raise ConfigError(f"broker: Redis does not let this node in: {why}") from None
            log.warning("the store does not answer yet: %s", error)

    async def _claim(self) -> None:
        """What a node must agree on with the store and every other node. Raises ConfigError."""
        client: Any = self._servers.client
        meta = self.names.meta
        await client.hsetnx(meta, "format", store.FORMAT)
        await client.hsetnx(meta, "partitions", self.settings.partitions)
        form, partitions = await client.hget(meta, "format"), int(await client.hget(meta, "partitions"))
        if form != store.FORMAT:
            raise ConfigError(
                f"broker: this store is kept in format {form.decode()} and this release reads format"
                f" {store.FORMAT.decode()}: upgrade this node, or set another prefix in the broker's URL"
            )
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
        await self.policies.agree()

    # ---------------------------------------------------------------- live

    async def run(self, events: Events) -> None:
        self._chain = Chain(events)
        self._started.set()
        attempts = 0
        sweeping = asyncio.create_task(self._keep_sweeping(), name="redis sweep")
        try:
            while True:
                began = asyncio.get_running_loop().time()
                moved = asyncio.create_task(self._servers.moved(), name="redis master")
                try:
                    await self._listen(moved)
                except AWAY as error:
                    log.warning("the connection to Redis is lost: %s", error or type(error).__name__)
                except ConfigError as error:
                    log.error("the store cannot be used any more: %s", error)
                except Exception:  # of a library, or a fault of ours: a node that listens no more helps nobody
                    log.exception("the reader of Redis failed, and begins anew")
                finally:
                    moved.cancel()
                    self.counts.disconnects += self._connected
                    self._connected = False
                    for live in self._live.values():
                        live.close()
                    self._live.clear()
                    self._at.clear()
                raise_if_cancelled()
                attempts = 1 if asyncio.get_running_loop().time() - began > 10 else attempts + 1
                await asyncio.sleep(random.uniform(0, min(BACKOFF, 0.05 * 2**attempts)))  # noqa: S311
                with suppress(*AWAY):
                    async with asyncio.timeout(WITHIN):
                        await self._servers.refresh()
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            self._started.clear()
            self._chain = None

    async def _listen(self, moved: asyncio.Task[None]) -> None:
        """Connect, subscribe, check; then see to it that all of it stays so. Ends by raising."""
        chain, loop = self.chain, asyncio.get_running_loop()
        self._replica = False
        await self._claim()
        await self._calls.load()
        await self._place(chain.followed)
        chain.suspect(chain.followed)
        await self._ask({*chain.due, *chain.known})  # what it published elsewhere may be gone just as well
        self._connected = True
        overdue_at = agree_at = loop.time() + GRACE
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE / 4):
                    await self._nudged.wait()
            self._nudged.clear()
            raise_if_cancelled()  # which redis-py may have answered by trying once more, with success
            if moved.done():
                moved.result()  # it failed by no fault of the store's
                raise LiveError("the Sentinels name another master")
            if self._replica:
                raise LiveError("the server has become a replica")
            self._stay_alive(loop.time())
            if self._homeless:
                lost, self._homeless = self._homeless, set()
                await self._servers.refresh()
                await self._place(lost)
                chain.suspect(lost)
            if loop.time() >= overdue_at:
                chain.overdue()
                overdue_at = loop.time() + GRACE
            if loop.time() >= agree_at:
                agree_at = loop.time() + AGREE
                await self.policies.agree()
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
            async with self._placing:
                if address not in self._live:
                    self._live[address] = await LiveConnection.open(
                        address, self._servers.sharded, self._on_payload, self._on_lost, WITHIN
                    )
            await self._live[address].subscribe([self.names.subject(p) for p in group], WITHIN)
            self._at.update(dict.fromkeys(group, address))

    def _on_payload(self, subject: bytes, payload: bytes) -> None:
        chain, partition = self.chain, self.names.partition_of_subject[subject]
        try:
            chain.frame(store.decode_frame(partition, payload))
        except ValueError as error:  # whatever it was, it was missed
            log.error("a live message cannot be read, and counts as lost: upgrade this node (%s)", error)
            chain.suspect([partition])
        if chain.due:
            self._nudged.set()

    def _on_replica(self) -> None:
        self._replica = True
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
                if chain.watermark(partition) == UNKNOWN:  # else it is followed, and stays so over a reconnect
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
            self.counts.losses += answer[2] == b"1"
            if live and answer[2] == b"0":
                chain.reported(partition, top, history)
            else:
                chain.answered(partition, top, history)

    # ---------------------------------------------------------------- publishing and reading

    async def publish(self, draft: Draft) -> Receipt:
        return await self._writer.publish(draft)

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
        names, partition = self.names, self.partition(channel)
        latest = self.policies.of(channel).slow == "latest"
        stream = names.log(partition, channel)

        def ask(pipeline: Any) -> None:
            self._ask_first(pipeline, partition)
            pipeline.xrevrange(stream, f"{since}-0", "-", count=1)
            pipeline.xrange(stream, f"({since}-0", "+", count=limit + 1)
            if latest:
                pipeline.hgetall(names.keys(partition, channel))

        (seconds, micros), words, held, after, *table = await self._view(partition, ask)
        part = store.decode_part(words)
        if part.policy > self.policies.now.generation:  # written under a newer one than this node has heard of
            await self._agree()
            if latest != (self.policies.of(channel).slow == "latest"):
                return await self._page(channel, since, limit)
        floor, empty = self.policies.proven(channel, part, int(seconds) * 1_000_000 + int(micros))
        page = store.page(
            channel, since, limit, self.settings.page_bytes, latest, floor, empty, part.top, held, after,
            table[0] if table else {},
        )  # fmt: skip
        return page, part.history

    async def _agree(self) -> None:
        try:
            await self.policies.agree()
        except AWAY as error:
            raise away(error) from error

    async def snapshot(self, channel: str) -> Snapshot:
        snapshot, history = await self._snapshot(channel)
        if not await self._told(channel, snapshot.offset, history):
            snapshot, _ = await self._snapshot(channel)
        return snapshot

    async def _snapshot(self, channel: str) -> tuple[Snapshot, str]:
        partition = self.partition(channel)

        def ask(pipeline: Any) -> None:
            self._ask_first(pipeline, partition)
            pipeline.hgetall(self.names.keys(partition, channel))

        (seconds, micros), words, table = await self._view(partition, ask)
        part = store.decode_part(words)
        return store.snapshot(channel, int(seconds) * 1_000_000 + int(micros), part.top, table), part.history

    async def _view(self, partition: int, ask: Callable[[Any], None]) -> list[Any]:
        slot = partition * store.SLOTS // self.settings.partitions
        return await self._calls.view(ask, self.names.part(partition), slot)

    def _ask_first(self, pipeline: Any, partition: int) -> None:
        """What each view begins with: the store's clock and the partition."""
        pipeline.time()
        pipeline.hmget(self.names.part(partition), *store.PART_FIELDS)

    # ---------------------------------------------------------------- ending keys

    async def sweep(self, partitions: Collection[int]) -> None:
        """Publish the deletion of each key of these partitions whose time is over. Its home node does; two do no harm.

        Raises Problem `unavailable`.
        """
        try:
            await self._sweep.sweep(partitions)
        except AWAY as error:
            raise away(error) from error

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            if self._connected:
                try:
                    await self.sweep(self.homes())
                except Problem as problem:
                    log.warning("keys whose time is over stay a little longer: %s", problem)

    async def close(self) -> None:
        await self._writer.close()
        await self._servers.close()
