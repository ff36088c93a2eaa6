"""Ending keys whose time is over: the home node publishes their deletion, guarded by the value it ends.

Each partition has an index of when its values end, and its deletions are forgotten: `<channel>\\0<key>` by microsecond.
All that is known is there, so a node that dies in the midst leaves nothing undone, and two that do the same do no harm:
the store refuses a deletion of a value that is no longer held.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

from redis.asyncio.cluster import RedisCluster

from gateway.brokers import redis_store as store
from gateway.brokers.base import Receipt
from gateway.brokers.redis_calls import AWAY, WITHIN, Calls
from gateway.errors import Problem
from gateway.message import Draft, new_id
from gateway.settings import Policy

log = logging.getLogger("ringcast.redis")

BATCH = 64  # partitions asked at once, and keys of one that are ended at a time
IDLE = 5.0  # seconds between two looks at a partition of which no key ends before
INDEXED = 3600  # seconds between two looks for tables of a release that kept no index
SCANNED = 1000  # names that such a look takes at a time

End = Callable[[Draft, int], Awaitable[Receipt]]  # publish a deletion, guarded by the offset of the value it ends


class Sweep:
    """`client` is a Redis client of any kind."""

    def __init__(
        self, names: store.Names, client: Any, calls: Calls, policy: Callable[[str], Policy], end: End
    ) -> None:
        self._names = names
        self._client = client
        self._calls = calls
        self._policy = policy
        self._end = end
        self._look_at: dict[int, float] = {}  # by the loop's clock
        self._crowded: set[str] = set()  # channels with more deletions than are kept
        self._indexed_at = float("-inf")

    def crowd(self, channel: str) -> None:
        """This channel has too many deletions: the oldest are forgotten with the next look."""
        self._crowded.add(channel)

    async def sweep(self, partitions: Collection[int]) -> None:
        """Publish the deletion of each key of these partitions whose time is over. Raises what says that it is away."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._indexed_at >= INDEXED:
            self._indexed_at = loop.time()
            await self._index()
        crowded, self._crowded = self._crowded, set()
        for channel in crowded:
            await self._forget(channel, [])
        due = [number for number in partitions if self._look_at.get(number, 0) <= loop.time()]
        for start in range(0, len(due), BATCH):
            await self._look(due[start : start + BATCH])

    async def _look(self, partitions: list[int]) -> None:
        calls = [(store.ENDS, [self._names.ends(number)], [BATCH]) for number in partitions]
        for number, answer in zip(partitions, await self._calls.run(calls), strict=True):
            if isinstance(answer, Exception):
                raise answer
            now = int(answer[0])
            ends = [(member, float(at)) for member, at in zip(answer[1][::2], answer[1][1::2], strict=True)]
            over = [member for member, at in ends if at <= now]
            later = [(at - now) / 1e6 for _, at in ends if at > now]
            wait = 0.0 if over else min([IDLE, *later])  # more may be behind those that are over
            self._look_at[number] = asyncio.get_running_loop().time() + wait
            channels: dict[str, list[str]] = {}
            for member in over:
                channel, _, key = member.decode().partition("\0")
                channels.setdefault(channel, []).append(key)
            for channel, keys in channels.items():
                await self._end_some(number, channel, keys, now)

    async def _end_some(self, partition: int, channel: str, keys: list[str], now: int) -> None:
        """End the values that are still the ones whose time is over, and put right what is said of the other keys."""
        async with asyncio.timeout(WITHIN):
            held = await self._client.hmget(self._names.keys(partition, channel), [f":{key}" for key in keys])
        others: list[str] = []
        ending: list[Awaitable[object]] = []
        for key, value in zip(keys, held, strict=True):
            found = None if value is None else store.decode_value_head(value)
            if found is None or found.deleted or found.expires > now:
                others.append(key)
            else:
                draft = Draft(channel, "expired", b"null", new_id(), key, found.version, deleted=True)
                ending.append(self._end_one(draft, found.offset))
        await asyncio.gather(*ending)
        if others:
            await self._forget(channel, others)

    async def _end_one(self, draft: Draft, offset: int) -> None:
        try:
            await self._end(draft, offset)
        except Problem as problem:
            if problem.code != "stale_version":
                raise
            # Another node was faster, or the key has a new value, which has its own time.

    async def _forget(self, channel: str, keys: list[str]) -> None:
        partition = self._names.partition(channel)
        names = [self._names.keys(partition, channel), self._names.ends(partition)]
        await self._calls.one((store.FORGET, names, [channel, self._policy(channel).max_keys, *keys]))

    # ---------------------------------------------------------------- tables without an index

    async def _index(self) -> None:
        """Once in a while one of the nodes looks for tables that a node of an earlier release wrote to."""
        if not await self._client.set(self._names.indexed, "1", nx=True, ex=INDEXED):
            return
        prefix = re.sub(r"([*?\[\]\\^])", r"\\\1", self._names.prefix)
        everywhere = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(self._client, RedisCluster) else {}
        found: list[bytes] = []
        try:
            async for name in self._client.scan_iter(match=f"{prefix}:{{*}}:k:*", count=SCANNED, **everywhere):
                found.append(name)
                if len(found) >= BATCH:
                    await self._index_some(found)
                    found = []
            await self._index_some(found)
        except BaseException:
            with suppress(*AWAY):
                await self._client.delete(self._names.indexed)  # another one does it then
            raise

    async def _index_some(self, tables: list[bytes]) -> None:
        for name in tables:
            head, _, channel = name.partition(b":k:")
            partition = self._names.partition_of_subject.get(head)
            if partition is not None:
                keys = [field[1:] for field in await self._client.hkeys(name) if field[:1] == b":"]
                for start in range(0, len(keys), SCANNED):
                    await self._forget(channel.decode(), [key.decode() for key in keys[start : start + SCANNED]])
