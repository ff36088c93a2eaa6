"""Presence on a running node: its users are vouched for, and the rolls of the partitions it is home to are called."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from gateway.errors import Problem
from gateway.follow import AGAIN
from gateway.identity import Identity
from gateway.message import PRESENCE_TABLE, Draft, Message
from gateway.presence.ear import Ear
from gateway.presence.entry import table
from gateway.presence.roll import Change, Outcome, Rolls
from gateway.presence.vouches import Vouch, Vouches
from gateway.ring import Ring
from gateway.session import Session

if TYPE_CHECKING:
    from gateway.node import Node

log = logging.getLogger("ringcast.presence")

TICK = 0.25  # seconds
RENEWAL = 60.0  # seconds between two looks at all rolls: what is empty, and who would be forgotten
PUBLISHERS = 32  # publishes that are under way at a time
DEAF = 2 / 3  # of node_ttl: whoever has not heard itself for this long does not judge others
NOBODY = b"null"


class Presence:
    def __init__(self, node: Node) -> None:
        settings = node.settings
        self._node = node
        self._settings = settings
        self._ear = Ear(node, self._began, self._heard, self._settled)
        self._vouches = Vouches(node.boot, node.partition, settings.presence_grace, settings.presence_members)
        hold = settings.presence_ttl if node.cluster.alone else settings.presence_ttl - settings.node_ttl
        self._rolls = Rolls(hold, settings.presence_members, self._ear.add, self._ear.drop, self._ear.reached)
        self._changes: deque[Change] = deque()
        self._work = asyncio.Event()
        self._ring: Ring | None = None  # what `_homes` follow from
        self._homes: set[int] = set()
        self._renewed_at = 0.0
        node.hub.entered, node.hub.left = self.enter, self.leave

    @property
    def busy(self) -> bool:
        """Whether there is something that the store is still to be told."""
        return bool(self._changes or self._vouches.dirty or self._rolls.dirty)

    # ---------------------------------------------------------------- what sessions do

    def enter(self, session: Session, channel: str) -> None:
        """A session has subscribed to a channel."""
        user = self._user(session, channel)
        if user is not None:
            self._vouches.enter(channel, user, session.identity.info or NOBODY)
            self._work.set()

    def leave(self, session: Session, channel: str) -> None:
        """It is subscribed no longer."""
        user = self._user(session, channel)
        if user is not None:
            self._vouches.leave(channel, user, _now())

    def renew(self, session: Session, identity: Identity) -> None:
        """New credentials of the same user replace those of an open session."""
        for channel in session.channels:
            user = self._user(session, channel)
            if user is not None:
                self._vouches.enter(channel, user, identity.info or NOBODY)
                self._vouches.leave(channel, user, _now())
                self._work.set()

    def _user(self, session: Session, channel: str) -> str | None:
        if session.unseen or not self._settings.policy(channel).presence:
            return None
        return session.identity.subject

    # ---------------------------------------------------------------- what is heard

    def _began(self, channel: str, messages: list[Message]) -> None:
        partition = _partition(channel)
        if partition is None:
            self._rolls.begin_roll(channel.partition(":")[2], messages)
            return
        self._vouches.snapshot(partition, messages)
        if partition in self._homes:
            self._rolls.begin(partition, messages, _now())

    def _heard(self, message: Message) -> None:
        partition = _partition(message.channel)
        if partition is None:
            self._rolls.told(message.channel.partition(":")[2], message)
            return
        self._vouches.heard(message)
        self._rolls.entry(partition, message, _now())

    def _settled(self) -> None:
        if self._alive(_now()) is None:
            return  # what this node knows is of a time before it was away
        self._changes.extend(self._rolls.act(_wall()))
        if self._rolls.dirty:
            self._ear.wake()
        if self._changes or self._vouches.dirty:
            self._work.set()

    # ---------------------------------------------------------------- what is done

    async def run(self) -> None:
        """Do it; ends only by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ear.run(), name="presence: hear")
            tasks.create_task(self._tick(), name="presence: tick")
            for _ in range(PUBLISHERS):
                tasks.create_task(self._publisher(), name="presence: publish")

    async def _tick(self) -> None:
        while True:
            now = _now()
            self._vouches.tick(now)
            alive = self._alive(now)
            self._rolls.alive(alive, now)
            if alive is not None:
                self._be_home()
            for partition in self._vouches.partitions:
                if table(partition) not in self._ear:
                    self._ear.add(table(partition))
            self._rolls.again()
            if now - self._renewed_at >= RENEWAL:
                self._renewed_at = now
                self._rolls.tidy(now, _wall())
            self._ear.wake()
            if self._vouches.dirty:
                self._work.set()
            await asyncio.sleep(TICK)

    def _alive(self, now: float) -> set[str] | None:
        """The runs of the nodes that are there; None while this node does not hear itself, and cannot tell."""
        cluster = self._node.cluster
        if not cluster.alone and now - cluster.view.echoed_at > self._settings.node_ttl * DEAF:
            return None
        return {member.boot for member in cluster.view.members.values()}

    def _be_home(self) -> None:
        """Take over the partitions that have become this node's, and let go of the others."""
        cluster = self._node.cluster
        if cluster.view.ring is not self._ring:
            self._ring = cluster.view.ring
            homes = {partition for partition in range(self._settings.partitions) if cluster.is_home(partition)}
            for partition in self._homes - homes:
                self._rolls.end(partition)
            for partition in homes - self._homes:
                self._ear.add(table(partition))  # from a snapshot on, also where it was followed
            gone, self._homes = self._homes - homes, homes
            for partition in gone - self._vouches.partitions.keys():
                self._ear.drop(table(partition))

    async def _publisher(self) -> None:
        while True:
            if self._changes:
                await self._change(self._changes.popleft())
            elif (found := self._vouches.next()) is not None:
                await self._vouch(*found)
            else:
                self._work.clear()
                await self._work.wait()

    async def _change(self, change: Change) -> None:
        outcome, held = await self._publish(change.draft)
        self._rolls.done(change, outcome, held)
        if outcome == "again":
            await asyncio.sleep(AGAIN)
        self._ear.wake()

    async def _vouch(self, vouch: Vouch, draft: Draft) -> None:
        outcome, _ = await self._publish(draft)
        self._vouches.done(vouch, outcome != "again", _now())
        if outcome == "again":
            await asyncio.sleep(AGAIN)

    async def _publish(self, draft: Draft) -> tuple[Outcome, int]:
        """How it went, and the offset of what it was refused for."""
        try:
            await self._node.broker.publish(draft)
        except Problem as problem:
            if problem.code == "stale_version":
                return "stale", problem.facts["current"]["offset"]
            if problem.code == "too_many_keys":
                return "full", 0
            if problem.code != "unavailable":
                log.warning("presence could not tell of %s: %s", draft.channel, problem)
            return "again", 0
        return "stored", 0


def _partition(channel: str) -> int | None:
    """The partition whose table it is."""
    return int(channel[len(PRESENCE_TABLE) :]) if channel.startswith(PRESENCE_TABLE) else None


def _now() -> float:
    return asyncio.get_running_loop().time()


def _wall() -> int:
    return time.time_ns() // 1_000_000
