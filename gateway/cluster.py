"""Who else serves: nodes tell of themselves in a keyed channel, and each draws its own ring from what it hears.

Every node publishes itself there under its name, every third of a ttl, and forgets whoever it has not heard of for a
ttl by its own clock. So the store's opinion of time does not matter, nor does a key that the store still holds. Views
may differ for a while. That places some clients badly and loses nothing, because delivery never asks here.
"""

from __future__ import annotations

import asyncio
import logging
from importlib import metadata
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.errors import Problem
from gateway.identity import Identity
from gateway.message import Draft, Message, new_id
from gateway.ring import Ring
from gateway.session import Ask

if TYPE_CHECKING:
    from gateway.node import Node

log = logging.getLogger("ringcast.cluster")

CHANNEL = "ringcast:nodes"
AGAIN = 0.5  # seconds between two attempts while the store is away
LAST_WORD = 2.0  # seconds for telling that this node is gone

State = Literal["joining", "active", "draining"]


class Member(msgspec.Struct, frozen=True):
    """What a node tells of itself. A field that a later version adds is passed over by this one."""

    state: State
    partitions: int
    release: str
    address: str | None = None  # where clients reach this very node, if they can
    accept: int = 0  # connections it would still take


class _Value(msgspec.Struct):
    """Of a message of a snapshot, what matters here."""

    key: str
    data: msgspec.Raw
    deleted: bool = False


_decode_member = msgspec.json.Decoder(Member).decode
_decode_value = msgspec.json.Decoder(_Value).decode


class View:
    """One node's view of all nodes; no I/O, the clock is handed in as seconds that only grow."""

    def __init__(self, own: str, member: Member, ttl: float) -> None:
        self.own = own
        self.members = {own: member}
        self.ring = Ring([], member.partitions)
        self._ttl = ttl
        self._until: dict[str, float] = {}  # when each of the others is given up
        self._draw()

    def become(self, member: Member) -> None:
        """What this node is from now on. Of itself it believes nothing that it hears."""
        self.members[self.own] = member
        self._draw()

    def heard(self, name: str, data: bytes, deleted: bool, now: float) -> None:
        """A node told of itself, or has gone. What cannot be read is that of a node with which nothing is shared."""
        if name == self.own:
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
        self._draw()

    def expire(self, now: float) -> None:
        """Give up every node that has been silent for a ttl."""
        silent = [name for name, until in self._until.items() if until <= now]
        for name in silent:
            log.info("node %s has been silent for %g s: it is taken for gone", name, self._ttl)
            self._forget(name)
        if silent:
            self._draw()

    @property
    def next_expiry(self) -> float | None:
        return min(self._until.values(), default=None)

    def _forget(self, name: str) -> None:
        self.members.pop(name, None)
        self._until.pop(name, None)

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


class Cluster:
    """This node's part in it. With the store in this process there is nobody else, and nothing is told."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._settings = node.settings
        self.alone = self._settings.broker.startswith("memory:")
        self._state: State = "active" if self.alone else "joining"
        self.view = View(self._settings.node, self._member(), self._settings.node_ttl)
        self.sessions = 0  # of the hub, that are the gateway's own
        self._news = asyncio.Event()  # this node has become something else
        self._wake = asyncio.Event()
        self._cut = self._deaf = self._gone = False
        self._telling = asyncio.Lock()  # so that this node is not told of again once it is gone
        self._known = False  # the store has taken something of this node
        self._away = True  # the store, which is told once

    def home(self, partition: int) -> str | None:
        """The address of the partition's home, where that is another node which has one."""
        name = self.view.ring.home(partition)
        return None if name is None or name == self.view.own else self.view.members[name].address

    async def run(self) -> None:
        """Tell of this node and hear of the others; ends only by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell(), name="nodes: tell")
            tasks.create_task(self._hear(), name="nodes: hear")
        await asyncio.Event().wait()  # both are done once the node is about to end

    def drain(self) -> None:
        """Leave the ring, and have everyone told at once."""
        self._become("draining")

    def deaf(self) -> None:
        """Follow the others no longer: the sessions of this node are about to end."""
        self._deaf = True
        self._wake.set()

    async def leave(self) -> None:
        """Tell that this node is gone, if the store takes it in time; else it is forgotten after its ttl."""
        if not self._known:
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
        accept = max(0, settings.max_connections - self._node.connections.total())
        return Member(self._state, settings.partitions, _release(), settings.advertise,
                      0 if self._state == "draining" else accept)  # fmt: skip

    def _draft(self, deleted: bool = False) -> Draft:
        data = b"null" if deleted else msgspec.json.encode(self._member())
        return Draft(CHANNEL, "node", data, new_id(), key=self._settings.node, deleted=deleted,
                     ttl=self._settings.node_ttl)  # fmt: skip

    async def _tell(self) -> None:
        while True:
            every = self._settings.node_ttl / 3
            self._news.clear()
            async with self._telling:
                if self._gone:
                    return
                try:
                    await self._node.broker.publish(self._draft())
                    self._known, self._away = True, False
                except Problem as problem:
                    every = min(every, AGAIN)
                    self._trouble(problem)
            self.view.become(self._member())
            try:
                async with asyncio.timeout(every):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _trouble(self, problem: Problem) -> None:
        """Told once for each time that the store goes away; that it is not there yet is the broker's to tell."""
        log.log(logging.DEBUG if self._away else logging.WARNING, "nothing is heard of the other nodes: %s", problem)
        self._away = True

    # ---------------------------------------------------------------- hearing

    async def _hear(self) -> None:
        while not self._deaf:
            try:
                await self._follow()
            except Problem as problem:
                self._trouble(problem)
                self.view.expire(_now())
                await asyncio.sleep(AGAIN)

    async def _follow(self) -> None:
        """Follow the channel as any session does, from a snapshot on. Returns when it was cut; raises Problem."""
        node, self._cut = self._node, False
        session = node.session(Identity("ringcast"), self._wake.set, welcome=False)
        session.on_abort = self._abort
        self.sessions += 1
        try:
            await node.open(session, [Ask(CHANNEL, snapshot=True)])
            for raw in (session.entries or {})[CHANNEL]["snapshot"]:
                value = _decode_value(raw)
                self.view.heard(value.key, bytes(value.data), value.deleted, _now())
            if self._state == "joining":
                self._become("active")
            while not (self._cut or self._deaf):
                for item in session.take():
                    if isinstance(item, Message) and item.key is not None:
                        self.view.heard(item.key, item.data, item.deleted, _now())
                node.sent(session)
                if session.outbox:
                    continue
                self.view.expire(_now())
                await self._until(self.view.next_expiry)
        finally:
            self.sessions -= 1
            node.leave(session)

    async def _until(self, at: float | None) -> None:
        try:
            async with asyncio.timeout_at(at):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _abort(self) -> None:
        self._cut = True
        self._wake.set()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _release() -> str:
    try:
        return metadata.version("ringcast")
    except metadata.PackageNotFoundError:
        return "source"
