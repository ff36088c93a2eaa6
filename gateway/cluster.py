"""Who else serves: nodes tell of themselves in a keyed channel, and each draws its own ring from what it hears.

Every node publishes itself there under its name, every third of a ttl, and forgets whoever it has not heard of for a
ttl by its own clock. So the store's opinion of time does not matter, nor does a key that the store still holds. Views
may differ for a while. That places some clients badly and loses nothing, because delivery never asks here.
"""

from __future__ import annotations

import asyncio
import logging
import math
from importlib import metadata
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec.structs import replace

from gateway.errors import Problem
from gateway.follow import AGAIN, Follower
from gateway.identity import NODES
from gateway.load import Load, load_of
from gateway.message import Draft, Message, new_id
from gateway.ring import Ring
from gateway.roll_call import ROLL_CALL, RollCall

if TYPE_CHECKING:
    from gateway.node import Node

log = logging.getLogger("ringcast.cluster")

MISSED = 600.0  # seconds; a node that is cut off from the store keeps its connections
LAST_WORD = 2.0  # seconds for telling that this node is gone

ACCEPT_RATE = 2000  # of a node that does not tell

State = Literal["joining", "active", "draining"]


class Member(msgspec.Struct, frozen=True):
    """What a node tells of itself. A field that a later version adds is passed over by this one."""

    state: State
    partitions: int
    release: str
    address: str | None = None  # where clients reach this very node, if they can
    accept: int = 0  # connections it would still take
    accept_rate: int = ACCEPT_RATE  # connections a second that it takes
    boot: str = ""  # this life of the node: what it vouched for in an earlier one is over
    traced: bool = False  # it reads live messages with a trace, which the first release did not
    view: str = ""  # the hash of the ring that it draws
    load: Load | None = None


_decode_member = msgspec.json.Decoder(Member).decode


class View:
    """One node's view of all nodes; no I/O, the clock is handed in as seconds that only grow."""

    def __init__(self, own: str, member: Member, ttl: float) -> None:
        self.own = own
        self.members = {own: member}
        self.ring = Ring([], member.partitions)
        self._ttl = ttl
        self._until: dict[str, float] = {}  # when each of the others is given up
        self._silent: dict[str, float] = {}  # until when who was given up is still missed
        self.echoed_at = -math.inf  # when this node last heard itself
        self._draw()

    def become(self, member: Member) -> None:
        """What this node is from now on. Of itself it believes nothing that it hears."""
        self.members[self.own] = member
        self._draw()

    def heard(self, name: str, data: bytes, deleted: bool, now: float) -> None:
        """A node told of itself, or has gone. What cannot be read is that of a node with which nothing is shared."""
        if name == self.own:
            self.echoed_at = now
            return
        try:
            member = None if deleted else _decode_member(data)
        except msgspec.DecodeError as error:
            log.warning("node %s tells of itself what this version cannot read: %s", name, error)
            member = None
        if member is None:
            self._forget(name)
        else:
            self.members[name] = member
            self._until[name] = now + self._ttl
            self._silent.pop(name, None)
        self._draw()

    def expire(self, now: float) -> None:
        """Give up every node that has been silent for a ttl."""
        silent = [name for name, until in self._until.items() if until <= now]
        for name in silent:
            log.info("node %s has been silent for %g s: it is taken for gone", name, self._ttl)
            self._forget(name)
            self._silent[name] = now + MISSED
        if silent:
            self._draw()

    @property
    def next_expiry(self) -> float | None:
        return min(self._until.values(), default=None)

    def _forget(self, name: str) -> None:
        self.members.pop(name, None)
        self._until.pop(name, None)
        self._silent.pop(name, None)

    def others(self, now: float) -> set[str]:
        """All other nodes that may hold connections: the members, and who fell silent without a word not long ago."""
        self._silent = {name: until for name, until in self._silent.items() if until > now}
        return {*self.members, *self._silent} - {self.own}

    def budget(self) -> float:
        """Connections a second that the active nodes take from this one: together, and shared by all that drain."""
        others = [member for name, member in self.members.items() if name != self.own]
        takers = [member.accept_rate for member in others if member.state == "active"]
        return sum(takers) / (1 + sum(member.state == "draining" for member in others))

    def _draw(self) -> None:
        partitions = self.ring.partitions
        active = sorted(
            name for name, member in self.members.items()
            if member.state == "active" and member.partitions == partitions
        )  # fmt: skip
        before = self.ring.members
        if tuple(active) != before:
            self.ring = Ring(active, partitions)
            if {*before, *active} - {self.own}:  # of a node that is alone there is nothing to tell
                log.info("on the ring of %d partitions: %s (%s)", partitions, " ".join(active), self.ring.hash)
        self.members[self.own] = replace(self.members[self.own], view=self.ring.hash)


class Cluster:
    """This node's part in it. With the store in this process there is nobody else, and the console alone is told."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._settings = node.settings
        self.alone = self._settings.broker.startswith("memory:")
        self._state: State = "active" if self.alone else "joining"
        self.roll_call = RollCall(node, NODES)
        self.view = View(self._settings.node, self._member(), self._settings.node_ttl)
        self._news = asyncio.Event()  # this node has become something else
        self._gone = False
        self._telling = asyncio.Lock()  # so that this node is not told of again once it is gone
        self.known = self.alone  # the store has taken something of this node, so that the others hear of it
        self._away = True  # the store, which is told once

    def home(self, partition: int) -> str | None:
        """The address of the partition's home, where that is another node which has one."""
        name = self.view.ring.home(partition)
        return None if name is None or name == self.view.own else self.view.members[name].address

    def is_home(self, partition: int) -> bool:
        """Whether this node has the duties of the partition's home. A node that is alone always has.

        Two nodes may both believe it for a while, or none; so what a home does must do no harm when done twice.
        """
        return self.alone or self.view.ring.home(partition) == self.view.own

    @property
    def traced(self) -> bool:
        """Whether every node reads messages with a trace: for one that does not they would be lost on their way."""
        return all(member.traced for member in self.view.members.values())

    def homes(self) -> list[int]:
        """The partitions whose home this node takes itself for."""
        return [partition for partition in range(self._settings.partitions) if self.is_home(partition)]

    async def run(self) -> None:
        """Tell of this node and hear of the others; ends only by cancellation."""
        if self.alone:
            await self._tell()
        hear = Follower(self._node, NODES, self._began, self._heard, idle=self._expire, away=self._trouble)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell(), name="nodes: tell")
            tasks.create_task(hear.run(), name="nodes: hear")

    def drain(self) -> None:
        """Leave the ring, and have everyone told at once."""
        self._become("draining")

    async def leave(self) -> None:
        """Tell that this node is gone, if the store takes it in time; else it is forgotten after its ttl."""
        if self.alone or not self.known:
            return
        try:
            async with asyncio.timeout(LAST_WORD), self._telling:
                self._gone = True
                await self._node.broker.publish(self._draft(deleted=True))
        except (Problem, TimeoutError) as problem:
            log.warning("the other nodes could not be told that this one is gone: %s", problem)

    # ---------------------------------------------------------------- telling

    def _become(self, state: State) -> None:
        if self._state != state:
            self._state = state
            self.view.become(self._member())
            self._news.set()

    def _member(self) -> Member:
        settings = self._settings
        room = max(0, settings.max_connections - self._node.admission.connections.total())
        return Member(
            self._state, settings.partitions, release(), settings.advertise, 0 if self._state == "draining" else room,
            settings.accept_rate, self._node.boot, traced=True,
            load=load_of(self._node.metrics),
        )  # fmt: skip

    def _draft(self, deleted: bool = False) -> Draft:
        data = b"null" if deleted else msgspec.json.encode(replace(self._member(), view=self.view.ring.hash))
        return Draft(NODES, "node", data, new_id(), key=self._settings.node, deleted=deleted,
                     ttl=self._settings.node_ttl)  # fmt: skip

    async def _tell(self) -> None:
        while True:
            every = self._settings.node_ttl / 3
            self._news.clear()
            async with self._telling:
                if self._gone:
                    return
                try:
                    if not self.alone or self._watched():
                        await self._node.broker.publish(self._draft())
                    self.known, self._away = True, False
                except Problem as problem:
                    every = min(every, AGAIN)
                    self._trouble(problem)
            self.view.become(self._member())
            try:
                async with asyncio.timeout(every):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _watched(self) -> bool:
        at = self._node.hub.partitions.get(self._node.broker.partition(NODES))
        channel = None if at is None else at.channels.get(NODES)
        return channel is not None and channel.subscriptions > 0

    def _trouble(self, problem: Problem) -> None:
        """Told once for each time that the store goes away; that it is not there yet is the broker's to tell."""
        log.log(logging.DEBUG if self._away else logging.WARNING, "nothing is heard of the other nodes: %s", problem)
        self._away = True

    # ---------------------------------------------------------------- hearing

    def _began(self, messages: list[Message]) -> None:
        for message in messages:
            self._heard(message)
        if self._state == "joining":
            self._become("active")

    def _heard(self, message: Message) -> None:
        if message.event == "expired":
            return  # the store's own word: here silence is judged by the clock here, and is no farewell
        if message.key is not None:
            self.view.heard(message.key, message.data, message.deleted, _now())
        elif message.event == ROLL_CALL:
            self.roll_call.asked(message)

    def _expire(self) -> float | None:
        self.view.expire(_now())
        return self.view.next_expiry


def _now() -> float:
    return asyncio.get_running_loop().time()


def release() -> str:
    try:
        return metadata.version("ringcast")
    except metadata.PackageNotFoundError:
        return "source"
