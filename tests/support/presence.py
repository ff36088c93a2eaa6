"""Presence without a network: nodes that vouch, homes that call the roll, and the memory store between them.

What nodes and homes publish and hear waits until a test lets it through.
"""

from __future__ import annotations

from collections import deque

from gateway.brokers.chain import Frame
from gateway.brokers.memory_store import MemoryStore
from gateway.errors import Problem
from gateway.message import Draft, Message, partition_of
from gateway.presence.entry import decode_member, presence, table
from gateway.presence.roll import Change, Rolls
from gateway.presence.vouches import Vouch, Vouches
from gateway.settings import Settings

GRACE, HOLD, MOST, TICK = 2.0, 5.0, 4, 0.5  # seconds, but for MOST
SETTINGS = Settings(partitions=2, presence_members=MOST)
CHANNELS = ["room:1", "room:2"]


class World:
    """The store, and a clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.store = MemoryStore(SETTINGS, lambda: int(self.now * 1e6))
        self.log: list[Message] = []
        self.ears: list[deque[Message]] = []
        self.store.listeners.append(self._frame)
        self.nodes: dict[str, Node] = {}
        self.homes: list[Home] = []

    def _frame(self, frame: Frame) -> None:
        self.log.append(frame.message)
        for ear in self.ears:
            ear.append(frame.message)

    def publish(self, draft: Draft) -> tuple[str, int]:
        try:
            self.store.publish(draft)
        except Problem as problem:
            held = problem.facts.get("current", {}).get("offset", 0)
            return {"stale_version": "stale", "too_many_keys": "full"}[problem.code], held
        return "stored", 0

    def alive(self) -> set[str]:
        return {name for name, node in self.nodes.items() if not node.dead and not node.away}

    def true_members(self) -> set[tuple[str, str]]:
        nodes = [node for node in self.nodes.values() if not node.dead]
        return {place for node in nodes for place, number in node.sessions.items() if number}

    def told(self, channel: str) -> list[tuple[str, str]]:
        return [(m.event, m.key or "") for m in self.log if m.channel == presence(channel)]

    def shown(self) -> set[tuple[str, str]]:
        return {
            (channel, decode_member(message.data).user)
            for channel in CHANNELS for message in self.store.snapshot(presence(channel)).messages
        }  # fmt: skip


class Node:
    """One run of a node. What it publishes may wait; what it hears may too."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.vouches = Vouches(name, lambda channel: partition_of(channel, 2), GRACE, MOST)
        self.ear: deque[Message] = deque()
        world.ears.append(self.ear)
        world.nodes[name] = self
        self.sessions: dict[tuple[str, str], int] = {}
        self.dead = self.away = False

    def enter(self, channel: str, user: str, info: bytes = b"null") -> None:
        self.sessions[channel, user] = self.sessions.get((channel, user), 0) + 1
        self.vouches.enter(channel, user, info)

    def leave(self, channel: str, user: str) -> None:
        self.sessions[channel, user] -= 1
        self.vouches.leave(channel, user, self.world.now)

    def hear(self, limit: int = 1 << 30) -> None:
        for _ in range(min(limit, len(self.ear))):
            self.vouches.heard(self.ear.popleft())

    def tell(self, limit: int = 1 << 30) -> None:
        self.vouches.tick(self.world.now)
        for _ in range(limit):
            found = self.vouches.next()
            if found is None:
                return
            vouch, draft = found
            self._sent(vouch, draft)

    def _sent(self, vouch: Vouch, draft: Draft) -> None:
        self.world.publish(draft)
        self.vouches.done(vouch, True, self.world.now)


class Home:
    """One that believes to be the home of every partition."""

    def __init__(self, world: World, most: int = MOST) -> None:
        self.world = world
        self.ear: deque[Message] = deque()
        self.rolls = Rolls(HOLD, most, self._follow, lambda channel: self.joined.discard(channel), self._reached)
        self.joined: set[str] = set()
        self.flying: deque[Change] = deque()
        world.ears.append(self.ear)
        world.homes.append(self)
        for partition in range(2):
            self.rolls.begin(partition, world.store.snapshot(table(partition)).messages, world.now)
        self.ear.clear()
        self.begin_rolls()

    def _follow(self, channel: str) -> None:
        self.joined.add(channel)

    def _reached(self, channel: str) -> int:
        return self.world.log[-1].offset if not self.ear else self.ear[0].offset - 1

    def begin_rolls(self) -> None:
        """Read what is told of the channels that are new here; everything before that has been heard."""
        for channel in [c for c in self.joined if not self.rolls.rolls[c.removeprefix("presence:")].read]:
            self.rolls.begin_roll(channel.removeprefix("presence:"), self.world.store.snapshot(channel).messages)

    def hear(self, limit: int = 1 << 30) -> None:
        for _ in range(min(limit, len(self.ear))):
            message = self.ear.popleft()
            if message.channel.startswith("ringcast:presence."):
                self.rolls.entry(int(message.channel.rpartition(".")[2]), message, self.world.now)
            else:
                self.rolls.told(message.channel.removeprefix("presence:"), message)

    def call(self, alive: set[str] | None) -> None:
        """Decide; what is to be published flies until `land`."""
        self.rolls.alive(alive, self.world.now)
        self.rolls.again()
        self.rolls.tidy(self.world.now, int(self.world.now * 1000))
        self.flying.extend(self.rolls.act(int(self.world.now * 1000)))

    def land(self, limit: int = 1 << 30) -> None:
        for _ in range(min(limit, len(self.flying))):
            change = self.flying.popleft()
            outcome, held = self.world.publish(change.draft)
            self.rolls.done(change, outcome, held)  # type: ignore[arg-type]  # the table above has the words

    def settle(self) -> None:
        self.hear()
        self.begin_rolls()
        self.call(self.world.alive())
        self.land()


def settle(world: World) -> None:
    """Let everything that is under way come to its end."""
    for _ in range(60):
        world.now += TICK
        for node in world.nodes.values():
            if not node.dead:
                node.hear()
                node.tell()
        for home in world.homes:
            home.settle()
