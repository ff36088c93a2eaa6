"""Publishing to Redis: what is published at the same time shares a pipeline; each server has its own, and a breaker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from redis.exceptions import ResponseError

from gateway.brokers import redis_store as store
from gateway.brokers.base import Receipt
from gateway.brokers.breaker import Breaker
from gateway.brokers.chain import Chain
from gateway.brokers.ids import Allowance
from gateway.brokers.redis_calls import AWAY, WITHIN, Calls, away
from gateway.brokers.redis_policies import RedisPolicies
from gateway.brokers.redis_servers import Servers
from gateway.errors import Problem
from gateway.message import Draft, partition_of
from gateway.settings import Settings

BATCH = 200  # publishes that share a pipeline
QUEUE = 10_000  # that wait for a server at most
PATIENCE = 5.0  # seconds that a publish waits at most, also where the store answers but never settles


@dataclass(slots=True)
class Waiting:
    draft: Draft
    partition: int
    receipt: asyncio.Future[Receipt]
    ends: int | None = None  # the offset of the value whose time is over
    ordered: bool = False  # stored before what comes behind it in its channel, or not at all


@dataclass(slots=True)
class Lane:
    """What is on its way to one server: one that does not answer holds up no other."""

    breaker: Breaker
    queue: list[Waiting] = field(default_factory=list)
    flushing: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self.breaker.is_open or bool(self.queue) or (self.flushing is not None and not self.flushing.done())


class Writer:
    """`ask` tells the store what this node knows of some partitions, before anything is written behind it.

    `crowded` is called with a channel that has more deletions than are kept.
    """

    def __init__(
        self, settings: Settings, names: store.Names, servers: Servers, calls: Calls, chain: Callable[[], Chain],
        ask: Callable[[Iterable[int]], Awaitable[None]], policies: RedisPolicies, crowded: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.settings = settings
        self.names = names
        self._servers = servers
        self._calls = calls
        self._chain = chain
        self._ask = ask
        self._policies = policies
        self._crowded = crowded
        self.ids = Allowance(settings.idempotency_window, settings.idempotency_bytes)
        self._lanes: dict[str, Lane] = {}

    async def publish(self, draft: Draft, ends: int | None = None) -> Receipt:
        """Store and announce; a deletion that `ends` an expired value is refused where the key holds another."""
        waiting = self._enqueue(draft, ends)
        return await self._answer(waiting, asyncio.get_running_loop().time() + PATIENCE)

    async def publish_all(self, drafts: Sequence[Draft]) -> list[Receipt | Exception]:
        """What became of each. They share pipelines, and those of one channel are stored in their order."""
        due = asyncio.get_running_loop().time() + PATIENCE
        found: list[Receipt | Exception] = []
        waiting: list[Waiting | Problem] = []
        for draft in drafts:
            try:
                waiting.append(self._enqueue(draft, ordered=True))
            except Problem as problem:
                waiting.append(problem)
        try:
            for each in waiting:
                try:
                    found.append(each if isinstance(each, Problem) else await self._answer(each, due))
                except Exception as error:  # told to whoever published it
                    found.append(error)
        finally:
            for each in waiting[len(found) :]:
                if isinstance(each, Waiting):
                    each.receipt.cancel()  # nobody waits any more
        return found

    def _enqueue(self, draft: Draft, ends: int | None = None, *, ordered: bool = False) -> Waiting:
        """Raises Problem `unavailable`."""
        partition = partition_of(draft.channel, self.settings.partitions)
        lane = self._lane(partition)
        lane.breaker.pass_through()
        if len(lane.queue) >= QUEUE:
            raise Problem("unavailable", "Too many publishes wait for the store: try again soon", retry_after=1)
        waiting = Waiting(draft, partition, asyncio.get_running_loop().create_future(), ends, ordered)
        lane.queue.append(waiting)
        if lane.flushing is None or lane.flushing.done():
            lane.flushing = asyncio.create_task(self._flush(lane), name="redis publisher")
        return waiting

    async def _answer(self, waiting: Waiting, due: float) -> Receipt:
        if waiting.receipt.done():
            return waiting.receipt.result()
        try:
            async with asyncio.timeout_at(due):
                return await waiting.receipt
        except TimeoutError as error:
            problem = away(error)
            self._lane(waiting.partition).breaker.trip(problem)
            raise problem from error

    def _lane(self, partition: int) -> Lane:
        server = self._servers.server_of(partition * store.SLOTS // self.settings.partitions)
        lane = self._lanes.get(server)
        if lane is None:
            self._lanes = {name: lane for name, lane in self._lanes.items() if lane.busy}  # servers come and go
            breaker = Breaker(f"Redis {server}".rstrip(), partial(self._probe, partition), AWAY)
            lane = self._lanes[server] = Lane(breaker)
        return lane

    async def _probe(self, partition: int) -> None:
        try:
            await self._calls.one((store.CHECK, [self.names.part(partition)], []))
        except AWAY:
            async with asyncio.timeout(WITHIN):
                await self._servers.refresh()  # another may have taken its place
            raise

    async def _flush(self, lane: Lane) -> None:
        await asyncio.sleep(0)  # everything of this turn of the loop comes along
        while lane.queue:
            batch, lane.queue = lane.queue[:BATCH], lane.queue[BATCH:]
            batch = [waiting for waiting in batch if not waiting.receipt.done()]  # else nobody waits any more
            try:
                await self._publish(lane, batch)
            except Exception as error:  # told to each publisher, and to nobody twice
                told: Exception = error
                if isinstance(error, AWAY):  # whoever queued behind it does not find out one batch at a time
                    lane.breaker.trip(told := away(error))
                    batch, lane.queue = batch + lane.queue, []
                for waiting in batch:
                    if not waiting.receipt.done():
                        waiting.receipt.set_exception(told)

    async def _publish(self, lane: Lane, batch: list[Waiting]) -> None:
        chain, settings, policies = self._chain(), self.settings, self._policies
        now = asyncio.get_running_loop().time()
        calls, taken = [], list[bool]()
        for waiting in batch:
            draft = waiting.draft
            taken.append(self.ids.take(draft, now))
            window = max(0.001, settings.idempotency_window) if taken[-1] else 0.0
            keys, arguments = store.publish_call(
                self.names, draft, policies.of(draft.channel), policies.now.generation, policies.earlier(draft.channel),
                chain.history(waiting.partition), window, self._servers.sharded, waiting.ends,
            )  # fmt: skip
            calls.append((store.PUBLISH, keys, arguments))
        again: list[Waiting] = []
        stored: dict[str, Waiting] = {}  # the last of each channel
        strangers: set[int] = set()
        unsettled: set[int] = set()
        for waiting, counted, answer in zip(batch, taken, await self._calls.run(calls), strict=True):
            if counted and not isinstance(answer, Exception) and answer[0] != b"ok":
                self.ids.give_back(waiting.draft, now)
            if not isinstance(answer, Exception) and answer[0] == b"ok" and answer[3] == b"1":
                self._crowded(waiting.draft.channel)
            if waiting.receipt.done():
                continue
            try:
                if isinstance(answer, Exception):
                    raise answer
                found = store.receipt(waiting.draft, answer)
            except Problem as problem:
                waiting.receipt.set_exception(problem)
            except AWAY as error:
                refusal = away(error)
                if not isinstance(error, ResponseError):
                    lane.breaker.trip(refusal)
                waiting.receipt.set_exception(refusal)
            else:
                if found is None:
                    again.append(waiting)
                    (unsettled if answer[0] == b"policy" else strangers).add(waiting.partition)
                else:
                    receipt, history = found
                    chain.acknowledged(waiting.partition, receipt.offset, history)
                    waiting.receipt.set_result(receipt)
                    stored[waiting.draft.channel] = waiting
        if again:
            again = self._still_in_order(again, stored, batch)
            try:
                if strangers:  # another server process: what is gone must be told before its place is taken
                    await self._ask(strangers)
                if unsettled:
                    await policies.settle(unsettled)
            finally:
                lane.queue[:0] = again

    def _still_in_order(self, again: list[Waiting], stored: dict[str, Waiting], batch: list[Waiting]) -> list[Waiting]:
        """Those of `again` that may be stored yet. The store settled between two of a pipeline's calls where one that
        is to come first was not stored, and one behind it was."""
        may: list[Waiting] = []
        for waiting in again:
            last = stored.get(waiting.draft.channel)
            if waiting.ordered and last is not None and batch.index(last) > batch.index(waiting):
                detail = "What was published behind it to its channel is stored already: send it again"
                waiting.receipt.set_exception(Problem("unavailable", detail, retry_after=1))
            else:
                may.append(waiting)
        return may

    async def close(self) -> None:
        flushing = [lane.flushing for lane in self._lanes.values() if lane.flushing is not None]
        for task in flushing:
            task.cancel()
        await asyncio.gather(*flushing, return_exceptions=True)
        for lane in self._lanes.values():
            await lane.breaker.close()
