"""Which of its users a node vouches for, and what it still has to tell of that; no I/O, no clock of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from gateway.message import Draft, Message, new_id
from gateway.presence.entry import LIFE, Entry, decode_entry, encode, key_of, run_of, table
from gateway.wheel import Slot, Wheel


@dataclass(slots=True, eq=False)
class Vouch:
    """One user of one channel on this node, from the first connection until the store knows that the last has gone."""

    channel: str
    user: str
    key: str
    partition: int
    info: bytes = b"null"
    connections: int = 0
    wanted: bool = True
    number: int = 0  # of the newest value that was sent, which the store may have; versions compare it
    told: bool | None = None  # what the store is known to have
    busy: bool = False  # a value is on its way
    again: bool = False  # and is out of date already
    renew_at: float = 0.0
    slot: Slot | None = field(default=None, repr=False)  # of the wheel


@dataclass(slots=True)
class _Room:
    vouched: int = 0
    waiting: dict[Vouch, None] = field(default_factory=dict)  # there are as many as may be told


class Vouches:
    """The node's own part of presence: sessions come and go here, `next` says what to publish of it."""

    def __init__(self, run: str, partition_of: Callable[[str], int], grace: float, most: int, life: float = LIFE):
        """`run` is this life of this node, `grace` seconds, `most` the users of a channel that are vouched for."""
        self.run = run
        self.dirty: dict[Vouch, None] = {}
        self.partitions: dict[int, int] = {}  # how many vouches each has
        self._partition_of = partition_of
        self._grace, self._most, self._life = grace, most, life
        self._vouches: dict[tuple[str, str], Vouch] = {}
        self._by_key: dict[str, Vouch] = {}
        self._rooms: dict[str, _Room] = {}
        self._wheel: Wheel[Vouch] = Wheel()
        self._number = 0

    def __len__(self) -> int:
        return len(self._vouches)

    def enter(self, channel: str, user: str, info: bytes) -> None:
        """A connection of the user follows the channel; the last one's `info` (JSON) is the user's."""
        vouch = self._vouches.get((channel, user)) or self._add(channel, user)
        vouch.connections += 1
        if not vouch.wanted or vouch.info != info:
            vouch.wanted, vouch.info = True, info
            self._mark(vouch)
        self._wheel.cancel(vouch)
        if vouch.told:
            self._wheel.schedule(vouch, vouch.renew_at)

    def leave(self, channel: str, user: str, now: float) -> None:
        """One of them follows it no longer."""
        vouch = self._vouches[channel, user]
        vouch.connections -= 1
        if not vouch.connections:
            self._wheel.schedule(vouch, now + self._grace)

    def tick(self, now: float) -> None:
        """Let go of those whose grace is over; tell again what the store would forget."""
        for vouch in self._wheel.due(now):
            if vouch.connections:
                self._mark(vouch)
            elif vouch.number:
                vouch.wanted = False
                self._mark(vouch)
            else:
                self._forget(vouch)

    def next(self) -> tuple[Vouch, Draft] | None:
        """Something to publish, and whose it is; `done` wants to know how it went."""
        if not self.dirty:
            return None
        vouch = next(iter(self.dirty))
        del self.dirty[vouch]
        vouch.busy = True
        self._number += 1  # one count for all: a user who comes back must not begin again below what the store holds
        vouch.number = self._number
        value = Entry(vouch.channel, vouch.user, vouch.wanted, msgspec.Raw(vouch.info))
        draft = Draft(
            table(vouch.partition), "vouch", encode(value), new_id(), key=vouch.key, version=(vouch.number,),
            ttl=self._life,
        )  # fmt: skip
        vouch.told = vouch.wanted
        return vouch, draft

    def done(self, vouch: Vouch, stored: bool, now: float) -> None:
        """The store took what `next` gave, or it may not have."""
        vouch.busy = False
        again, vouch.again = vouch.again, False
        if not stored:
            vouch.told = None
        if again or vouch.told is not vouch.wanted:
            self.dirty[vouch] = None
        elif vouch.wanted:
            vouch.renew_at = now + self._life / 2 * random.uniform(0.8, 1.0)  # noqa: S311 - spreads, hides nothing
            if vouch.connections:
                self._wheel.schedule(vouch, vouch.renew_at)
        else:
            self._forget(vouch)

    def heard(self, message: Message) -> None:
        """A value of this node's was replaced. What another ended, though it is so, is told again."""
        vouch = self._by_key.get(message.key or "")
        if vouch is None or not vouch.wanted or not message.deleted:
            return
        if message.version is None or message.version[0] >= vouch.number:
            self._mark(vouch)

    def snapshot(self, partition: int, messages: Iterable[Message]) -> None:
        """What the store has of a partition, all of it: what is missing of this node's is told again."""
        held = {message.key: message for message in messages if message.key and run_of(message.key) == self.run}
        for vouch in list(self._vouches.values()):
            if vouch.partition != partition or not vouch.number:
                continue
            message = held.pop(vouch.key, None)
            if vouch.wanted and (vouch.busy or message is None or not decode_entry(message.data).on):
                self._mark(vouch)
        for key, message in held.items():  # a store that lost something may hold again what had ended
            entry = decode_entry(message.data)
            if entry.on and key not in self._by_key:
                vouch = self._add(entry.channel, entry.user)
                vouch.wanted, vouch.number = False, (message.version or (1,))[0]
                self._mark(vouch)

    # ---------------------------------------------------------------- inside

    def _add(self, channel: str, user: str) -> Vouch:
        partition = self._partition_of(channel)
        vouch = Vouch(channel, user, key_of(self.run, channel, user), partition)
        self._vouches[channel, user] = self._by_key[vouch.key] = vouch
        self.partitions[partition] = self.partitions.get(partition, 0) + 1
        room = self._rooms.setdefault(channel, _Room())
        if room.vouched < self._most:
            room.vouched += 1
            self._mark(vouch)
        else:
            room.waiting[vouch] = None
        return vouch

    def _mark(self, vouch: Vouch) -> None:
        if vouch.busy:
            vouch.again = True
        elif vouch not in self._rooms[vouch.channel].waiting:
            self.dirty[vouch] = None

    def _forget(self, vouch: Vouch) -> None:
        del self._vouches[vouch.channel, vouch.user], self._by_key[vouch.key]
        self.dirty.pop(vouch, None)
        self._wheel.cancel(vouch)
        self.partitions[vouch.partition] -= 1
        if not self.partitions[vouch.partition]:
            del self.partitions[vouch.partition]
        room = self._rooms[vouch.channel]
        if vouch in room.waiting:
            del room.waiting[vouch]
        else:
            room.vouched -= 1
        if room.waiting and room.vouched < self._most:
            first = next(iter(room.waiting))
            del room.waiting[first]
            room.vouched += 1
            self._mark(first)
        if not room.vouched and not room.waiting:
            del self._rooms[vouch.channel]
