"""What a partition's home node owes its jobs: that a worker which died is told of, and wholes follow their parts.

Which channels have jobs to look after is told in a keyed channel before such a job is stored, so every node knows, and
whoever becomes their home takes over. Two nodes that both believe they are do no harm: what they write has a version,
and the store takes the first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from gateway import job as jobs
from gateway.errors import Problem
from gateway.follow import Follower
from gateway.job import State
from gateway.leases import Leases
from gateway.message import Draft, Message, new_id
from gateway.node import Node
from gateway.wheel import TICK

T = TypeVar("T")

log = logging.getLogger("ringcast.jobs")

CHANNEL = "ringcast:jobs"  # its keys: the names of `jobs:` channels
TTL = 1800.0  # seconds that a channel is known for; its home renews it while there is something to look after
REST = 60.0  # seconds that a channel is followed beyond that
NOTED = 10_000  # executions that were told of and need not be again
LOOKS = 8  # channels that are looked into at a time, when their home has changed
WRITES = 64  # events that are stored at a time
SLOW = 1.0  # seconds for an answer from which on the store counts as away
FROZEN = 0.5  # seconds behind its time from which on a tick says that this process stood still


class Ward:
    """A channel that this node looks after, and its follower."""

    def __init__(self, steward: Steward, channel: str) -> None:
        self.channel = channel
        self.leases = Leases()
        self.busy_at = self.told_at = _now()  # when there was something to look after; when its home was renewed
        self._follower = Follower(steward.node, channel, self._began, self._heard)
        self.task: asyncio.Task[None]

    async def run(self) -> None:
        await self._follower.run()

    def _began(self, messages: list[Message]) -> None:
        self.leases.begin([state for message in messages if (state := _state(message)) is not None], _now())

    def _heard(self, message: Message) -> None:
        if message.deleted:
            self.leases.forgot(message.key or "")
        elif (state := _state(message)) is not None:
            self.leases.heard(state, _now())


class Steward:
    def __init__(self, node: Node) -> None:
        self.node = node
        self._known: dict[str, None] = {}  # every channel that is told of
        self._wards: dict[str, Ward] = {}
        self._noted: OrderedDict[tuple[str, str, int, int], None] = OrderedDict()
        self._tasks: asyncio.TaskGroup
        self._unseen: dict[str, None] = {}  # channels that are to be looked into
        self._looking: asyncio.Task[None] | None = None

    async def note(self, channel: str, state: State) -> None:
        """Tell that a channel has a job to look after, before it has. Raises Problem."""
        leased = state.running and state.lease_ms is not None
        if not leased and state.parent is None and state.children is None:
            return
        execution = (channel, state.job, state.attempt, state.run)
        if execution in self._noted:
            return
        await self.node.publish(_draft(channel))
        self._noted[execution] = None
        if len(self._noted) > NOTED:
            self._noted.popitem(last=False)

    async def run(self) -> None:
        """Look after the channels whose home this node is; ends only by cancellation."""
        follower = Follower(self.node, CHANNEL, self._began, self._heard)
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(follower.run(), name="jobs: channels")
            self._tasks.create_task(self._sweep(), name="jobs: leases")

    # ---------------------------------------------------------------- which channels

    def _began(self, messages: list[Message]) -> None:
        self._known = {_channel(message): None for message in messages}
        self._settle()

    def _heard(self, message: Message) -> None:
        channel = _channel(message)
        if message.deleted:
            self._known.pop(channel, None)
            return
        self._known[channel] = None
        if self._is_home(channel):
            self._take(channel).busy_at = _now()  # what it was told for is about to come

    def _is_home(self, channel: str) -> bool:
        return self.node.cluster.is_home(self.node.partition(channel))

    def _settle(self) -> None:
        """The nodes or the channels have changed: let go of what is another's, and look into what is ours now."""
        for channel in [channel for channel in self._wards if not self._is_home(channel)]:
            self._wards.pop(channel).task.cancel()
        self._unseen |= {
            channel: None for channel in self._known if channel not in self._wards and self._is_home(channel)
        }  # fmt: skip
        if self._unseen and (self._looking is None or self._looking.done()):
            self._looking = self._tasks.create_task(self._look_into(), name="jobs: look")

    async def _look_into(self) -> None:
        """A few channels at a time, for there may be as many as users."""
        while self._unseen:
            some = [self._unseen.popitem()[0] for _ in range(min(LOOKS, len(self._unseen)))]
            await asyncio.gather(*(self._look(channel) for channel in some if self._is_home(channel)))

    async def _look(self, channel: str) -> None:
        """Take a channel into care if it has anything to look after."""
        found = Leases()
        try:
            messages = (await self.node.broker.snapshot(channel)).messages
        except Problem as problem:
            log.debug("%s could not be looked into: %s", channel, problem)
            self._take(channel)  # its follower tries until it can
            return
        found.begin([state for message in messages if (state := _state(message)) is not None], _now())
        if not found.idle:
            self._take(channel)

    def _take(self, channel: str) -> Ward:
        ward = self._wards.get(channel)
        if ward is None:
            ward = self._wards[channel] = Ward(self, channel)
            ward.task = self._tasks.create_task(ward.run(), name="jobs: follow")
        return ward

    # ---------------------------------------------------------------- leases

    async def _sweep(self) -> None:
        ring, away, ended = self.node.cluster.view.ring, False, _now()
        while True:
            await asyncio.sleep(TICK)
            now = _now()
            late, wards = now - ended - TICK, list(self._wards.values())
            if self.node.cluster.view.ring is not ring:
                ring = self.node.cluster.view.ring
                self._settle()
            if late > FROZEN:
                for ward in wards:
                    ward.leases.extend(late)
            if not self.node.broker.connected:
                away = True
            else:
                if away:
                    for ward in wards:
                        ward.leases.grant(now)
                away = not await self._tend(wards, now)
            ended = _now()

    async def _tend(self, wards: list[Ward], now: float) -> bool:
        """Tell what is due, and let go of what has been at rest; False when the store does not answer."""
        silent = {ward: found for ward in wards if (found := ward.leases.due(now))}
        drafts = await self._missed(silent)
        if drafts is None:
            return False
        clock = time.time_ns() // 1_000_000
        for ward in wards:
            found = ward.leases.wholes(clock)
            drafts += self._drafts(ward, found)
            if not ward.leases.idle:
                ward.busy_at = now
                if now - ward.told_at > TTL / 2:
                    ward.told_at = now
                    drafts.append(_draft(ward.channel))
            elif now - ward.busy_at > REST and self._wards.get(ward.channel) is ward:
                del self._wards[ward.channel]
                ward.task.cancel()
        return all(await _some(WRITES, [self._store(draft) for draft in drafts]))

    async def _missed(self, silent: dict[Ward, list[State]]) -> list[Draft] | None:
        """What is to be told of jobs that are silent, once the store has shown that it answers and knows no more.

        None where it does not, or not at once: then nobody could tell it of a sign of life either.
        """
        began = _now()
        try:
            held = await _some(LOOKS, [self.node.broker.snapshot(ward.channel) for ward in silent])
        except Problem as problem:
            log.debug("whether jobs gave a sign of life cannot be seen: %s", problem)
            return None
        if _now() - began > SLOW:
            return None
        clock, drafts = time.time_ns() // 1_000_000, list[Draft]()
        for (ward, states), snapshot in zip(silent.items(), held, strict=True):
            known = {message.key: message.version for message in snapshot.messages}
            silent_still = [state for state in states if known.get(state.job) == jobs.version_of(state)]
            drafts += self._drafts(ward, [jobs.missed(state, clock) for state in silent_still])
        return drafts

    def _drafts(self, ward: Ward, states: list[State]) -> list[Draft]:
        drafts = []
        for state in states:
            try:
                drafts.append(jobs.draft(ward.channel, state, self.node.settings))
            except Problem as problem:  # of a node that allows very little
                log.warning("job %s of %s cannot be told of: %s", state.job, ward.channel, problem)
        return drafts

    async def _store(self, draft: Draft) -> bool:
        try:
            await self.node.publish(draft)
        except Problem as problem:
            if problem.code != "stale_version":  # else something newer is on its way here
                log.warning("a job's state could not be stored: %s", problem)
                return False
        return True


async def _some(number: int, work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of `work`, done so many at a time."""
    found: list[T] = []
    for start in range(0, len(work), number):
        found += await asyncio.gather(*work[start : start + number])
    return found


def _draft(channel: str) -> Draft:
    return Draft(CHANNEL, "jobs", b"null", new_id(), key=channel.removeprefix("jobs:"), ttl=TTL)


def _channel(message: Message) -> str:
    return f"jobs:{message.key}"


def _state(message: Message) -> State | None:
    try:
        return jobs.decode(message.data)
    except msgspec.DecodeError as error:
        log.warning("job %s of %s is told of as this version cannot read: %s", message.key, message.channel, error)
        return None


def _now() -> float:
    return asyncio.get_running_loop().time()
