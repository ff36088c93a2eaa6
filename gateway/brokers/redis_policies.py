"""Which policies a deployment on Redis is written under, now and before: nodes agree on them through the store.

The record is in `<prefix>:meta`: `policy` is the generation that counts, `policy:<generation>` what it says. Each
partition notes the generation it was last written under and where earlier ones ended in it, in the step that publishes.
So a node that has not heard of a newer policy writes nothing under its own, and what an older one let go is never taken
for something that was not there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from gateway.brokers import policies
from gateway.brokers import redis_store as store
from gateway.brokers.policies import Policies
from gateway.brokers.redis_calls import WITHIN, Calls
from gateway.settings import Policy, Settings

log = logging.getLogger("ringcast.redis")

EARLIER = 9  # generations that are remembered; a partition counts with 8 before its own


class RedisPolicies:
    """`client` is a Redis client of any kind. Every call raises what says that the store is away."""

    def __init__(self, settings: Settings, names: store.Names, client: Any, calls: Calls) -> None:
        self.now = Policies.of_settings(settings)
        self._names = names
        self._client = client
        self._calls = calls
        self._known: dict[int, Policies] = {}
        self._earlier: dict[str, str] = {}  # by namespace, as the publishing script takes it

    def of(self, channel: str) -> Policy:
        return self.now.of(channel)

    # ---------------------------------------------------------------- agreeing

    async def agree(self) -> None:
        """Look what counts. The first time this node's own does from then on; later it follows what is newer."""
        async with asyncio.timeout(WITHIN):
            generation = int(await self._client.hget(self._names.meta, "policy") or 0)
            if self.now.generation and generation == self.now.generation:
                return
            theirs = await self._load(generation)
            if self.now.generation and theirs is not None and generation > self.now.generation:
                self._follow(theirs)
            elif not self.now.generation and theirs is not None and not (changes := theirs.differences(self.now)):
                self._take(theirs)
            else:
                if not self.now.generation and theirs is not None:
                    log.warning(
                        "this deployment had another policy, and from now on has this node's: %s; give all nodes the"
                        " same", "; ".join(changes),
                    )  # fmt: skip
                await self._claim(generation, self.now.generation)

    def _follow(self, theirs: Policies) -> None:
        changes = self.now.differences(theirs)
        if changes:
            log.warning(
                "another node was started with another policy, which this node follows: %s; give all nodes the same",
                "; ".join(changes),
            )  # fmt: skip
        self._take(theirs)

    async def _load(self, generation: int) -> Policies | None:
        """What counts, and all that is known of before."""
        held = await self._client.hgetall(self._names.meta)
        for field, record in held.items():
            name, _, number = field.decode().partition(":")
            if name == "policy" and number.isdecimal() and (found := policies.decode(int(number), record)):
                self._known[int(number)] = found
        return self._known.get(generation)

    async def _claim(self, generation: int, above: int) -> None:
        """Have this node's policies count, unless another node was faster: then look again."""
        call = (store.CLAIM, [self._names.meta], [generation, above, self.now.encode(), EARLIER])
        taken = int(await self._calls.one(call))
        if taken:
            self._take(Policies(taken, self.now.namespaces))
        else:
            await self.agree()

    def _take(self, found: Policies) -> None:
        self.now = self._known[found.generation] = found
        self._earlier.clear()

    async def settle(self, partitions: Iterable[int]) -> None:
        """Have these partitions written under what counts."""
        await self.agree()
        asked = list(partitions)
        calls = [(store.POLICY, [self._names.part(partition)], [self.now.generation]) for partition in asked]
        latest = 0
        for answer in await self._calls.run(calls):
            if isinstance(answer, Exception):
                raise answer
            latest = max(latest, int(answer))
        if latest > self.now.generation:  # the record went back, as in a failover, and this partition did not
            await self.agree()
            if latest > self.now.generation:
                await self._claim(self.now.generation, latest)

    # ---------------------------------------------------------------- what was before

    def earlier(self, channel: str) -> str:
        """Generation and retention of each earlier policy that the channel's log goes on from."""
        namespace = channel[: channel.index(":")]
        found = self._earlier.get(namespace)
        if found is None:
            ages = ((generation, self.retention(channel, generation)) for generation in sorted(self._known))
            found = self._earlier[namespace] = " ".join(f"{number}:{age}" for number, age in ages if age is not None)
        return found

    def retention(self, channel: str, generation: int) -> int | None:
        """Microseconds; None of one under which other things left the log, or that is not remembered."""
        known, now = self._known.get(generation), self.of(channel)
        then = None if known is None else known.of(channel)
        if then is None or (then.keyed, then.slow) != (now.keyed, now.slow):
            return None
        return int(then.history_ttl * 1e6)

    def proven(self, channel: str, part: store.Part, now: int) -> tuple[int, int]:
        """The floor of a channel, and up to where what it held may have left it by age."""
        floor, gone = part.floor, now - int(self.of(channel).history_ttl * 1e6)
        eras = list(part.eras)
        if part.policy and part.policy != self.now.generation:
            eras.append((part.policy, part.top))
        for generation, ends in eras:
            age = self.retention(channel, generation)
            if age is None:
                floor = max(floor, ends)
            else:
                gone = max(gone, min(ends, now - age))
        return floor, max(floor, min(part.top, gone))
