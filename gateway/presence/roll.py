"""The rolls that a home calls: who is vouched for, who is told as a member, and what to publish to make them agree.

No I/O, and clocks are handed in. What is told is the outcome of what the partition's table holds and of which nodes
are alive; it is compared anew whenever either changed, so that it does not matter what was missed, or done by another
home. `act` may only be called when everything up to one position of the partition has been told here: between two
pages of a log an entry can be missing that moved on to a later place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from gateway.message import Draft, Message, new_id
from gateway.presence.entry import LIFE, Entry, Member, decode_entry, decode_member, encode, presence, run_of, table

log = logging.getLogger("ringcast.presence")

LINGER = 60.0  # seconds that an empty roll is kept for, should another home still write to it

Kind = Literal["join", "update", "leave", "clean"]
Outcome = Literal["stored", "stale", "full", "again"]


@dataclass(slots=True, eq=False)
class Vouched:
    """One node's entry for a user."""

    key: str
    on: bool
    info: bytes
    offset: int
    number: int
    spent: bool = False  # it counts no more: should its node be alive, it writes another one

    @property
    def run(self) -> str:
        return run_of(self.key)


@dataclass(slots=True)
class Shown:
    """A member, as watchers were told."""

    info: bytes
    offset: int
    time: int  # milliseconds since 1970


@dataclass(slots=True)
class Roll:
    """Of one channel."""

    channel: str
    partition: int
    entries: dict[str, dict[str, Vouched]] = field(default_factory=dict)  # by user and key
    shown: dict[str, Shown] = field(default_factory=dict)  # by user
    read: bool = False  # `shown` is known
    busy: dict[str, int] = field(default_factory=dict)  # changes of a user that are on their way
    sent: dict[str, Kind] = field(default_factory=dict)  # and not heard of again yet
    refused: dict[str, int] = field(default_factory=dict)  # the offset of what a join was refused for
    waiting: dict[str, None] = field(default_factory=dict)  # users for whom there is no room
    joining: dict[str, None] = field(default_factory=dict)  # users whose join was sent, and not heard of yet
    empty_since: float | None = None


@dataclass(slots=True)
class _Table:
    """Of one partition: the channels in it, and where each key is."""

    channels: set[str] = field(default_factory=set)
    places: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Change:
    """Something to publish; `Rolls.done` wants to know how it went."""

    kind: Kind
    roll: Roll
    user: str
    draft: Draft
    entry: Vouched | None = None


class Rolls:
    """`follow(channel)` and `leave(channel)` say what is to be followed of what is told; `reached` how far that is."""

    def __init__(
        self, hold: float, most: int, follow: Callable[[str], None], leave: Callable[[str], None],
        reached: Callable[[str], int], life: float = LIFE,
    ) -> None:  # fmt: skip
        """`hold` is how many seconds entries count for after their node was lost sight of, `most` a roll's members."""
        self.rolls: dict[str, Roll] = {}
        self.dirty: dict[tuple[str, str], None] = {}
        self._hold, self._most, self._life = hold, most, life
        self._follow, self._leave, self._reached = follow, leave, reached
        self._tables: dict[int, _Table] = {}
        self._seen: dict[str, float] = {}  # when each run of a node was last known to be alive
        self._dead: set[str] = set()
        self._later: dict[tuple[str, str], None] = {}  # what the store did not take

    # ---------------------------------------------------------------- what the table says

    def begin(self, partition: int, messages: Iterable[Message], now: float) -> None:
        """This node is the partition's home, or has missed something of it: the table, all of it."""
        held = self._tables.setdefault(partition, _Table())
        held.places.clear()
        for channel in held.channels:
            roll = self.rolls[channel]
            for user in (*roll.entries, *roll.shown):
                self.dirty[channel, user] = None
            roll.entries.clear()
        for message in messages:
            self._note(partition, message, now)

    def entry(self, partition: int, message: Message, now: float) -> None:
        """A value that comes to the table. One of a partition that is another's is passed over."""
        if message.key is None or partition not in self._tables:
            return
        run = run_of(message.key)
        if not message.deleted and run in self._seen:
            # A sign of life. Without it a node that was away would vouch, be ended, and vouch again, as fast as it can.
            self._seen[run] = now
            if run in self._dead:
                self._dead.discard(run)
                self._mark_run(run)
        self._note(partition, message, now)

    def _note(self, partition: int, message: Message, now: float) -> None:
        if message.key is None:
            return
        try:
            value = None if message.deleted else decode_entry(message.data)
        except msgspec.DecodeError as error:
            log.warning("an entry of presence cannot be read by this version: %s", error)
            return
        if value is None:
            self._remove(partition, message.key)
        else:
            self._put(partition, message, value, now)

    def _put(self, partition: int, message: Message, value: Entry, now: float) -> None:
        key = message.key or ""
        roll = self.rolls.get(value.channel)
        if roll is None:
            roll = self.rolls[value.channel] = Roll(value.channel, partition)
            self._tables[partition].channels.add(value.channel)
            self._follow(presence(value.channel))
        number = (message.version or (0,))[0]
        entry = Vouched(key, value.on, bytes(value.info), message.offset, number)
        roll.entries.setdefault(value.user, {})[key] = entry
        self._tables[partition].places[key] = (value.channel, value.user)
        roll.empty_since = None
        self._seen.setdefault(entry.run, now)
        self.dirty[value.channel, value.user] = None

    def _remove(self, partition: int, key: str) -> None:
        place = self._tables[partition].places.pop(key, None)
        if place is None:
            return
        channel, user = place
        entries = self.rolls[channel].entries
        del entries[user][key]
        if not entries[user]:
            del entries[user]
        self.dirty[place] = None

    def end(self, partition: int) -> None:
        """Another node is the partition's home."""
        held = self._tables.pop(partition, None)
        for channel in held.channels if held is not None else ():
            del self.rolls[channel]
            self._leave(presence(channel))

    # ---------------------------------------------------------------- what is told

    def begin_roll(self, channel: str, messages: Iterable[Message]) -> None:
        """All the members of a channel, as the store has them."""
        roll = self.rolls.get(channel)
        if roll is None:
            return
        before = list(roll.shown)
        roll.shown.clear()
        roll.sent.clear()
        roll.refused.clear()
        roll.joining.clear()
        roll.read = True
        for message in messages:
            self.told(channel, message)
        for user in (*before, *roll.entries):
            self.dirty[channel, user] = None

    def told(self, channel: str, message: Message) -> None:
        """A join, an update or a leave, by whichever home."""
        roll = self.rolls.get(channel)
        user = message.key
        if roll is None or user is None:
            return
        roll.sent.pop(user, None)
        roll.joining.pop(user, None)
        roll.refused.pop(user, None)
        if message.deleted:
            roll.shown.pop(user, None)
        else:
            roll.shown[user] = Shown(_info(message.data), message.offset, message.time)
        self.dirty[channel, user] = None

    # ---------------------------------------------------------------- who is alive

    def alive(self, runs: Collection[str] | None, now: float) -> None:
        """The runs of nodes that are there; None where this node cannot tell, as it was not there itself."""
        for run, seen in list(self._seen.items()):
            if runs is None or run in runs:
                self._seen[run] = now
                if run in self._dead:
                    self._dead.discard(run)
                    self._mark_run(run)
            elif now - seen >= self._hold:
                if run not in self._dead:
                    self._dead.add(run)
                    self._mark_run(run)
                elif now - seen >= self._hold + LINGER and not self._mark_run(run):
                    del self._seen[run]
                    self._dead.discard(run)

    def _mark_run(self, run: str) -> bool:
        found = False
        for roll in self.rolls.values():
            for user, entries in roll.entries.items():
                if any(entry.run == run for entry in entries.values()):
                    self.dirty[roll.channel, user] = None
                    found = True
        return found

    def again(self) -> None:
        """Try again what the store did not take."""
        self.dirty.update(self._later)
        self._later.clear()

    def tidy(self, now: float, wall: int) -> None:
        """Renew members that the store would forget, drop what is empty; `wall` is in milliseconds since 1970."""
        for roll in list(self.rolls.values()):
            for user, shown in roll.shown.items():
                if self._is_old(shown, wall):
                    self.dirty[roll.channel, user] = None
            if roll.entries or roll.shown or not roll.read:
                roll.empty_since = None
            elif roll.empty_since is None:
                roll.empty_since = now
            elif now - roll.empty_since >= LINGER:
                del self.rolls[roll.channel]
                self._tables[roll.partition].channels.discard(roll.channel)
                self._leave(presence(roll.channel))

    def _is_old(self, shown: Shown, wall: int) -> bool:
        return shown.time < wall - self._life * 500

    # ---------------------------------------------------------------- what is to be done

    def act(self, wall: int, limit: int = 500) -> list[Change]:
        """The next changes to publish, of at most `limit` users."""
        changes: list[Change] = []
        for _ in range(min(limit, len(self.dirty))):
            channel, user = next(iter(self.dirty))
            del self.dirty[channel, user]
            roll = self.rolls.get(channel)
            if roll is None or not roll.read or user in roll.busy:
                continue  # it is looked at once that is over
            found = self._compare(roll, user, wall)
            if found:
                roll.busy[user] = len(found)
                changes += found
        return changes

    def _compare(self, roll: Roll, user: str, wall: int) -> list[Change]:
        entries = list(roll.entries.get(user, {}).values())
        live = [entry for entry in entries if entry.on and not entry.spent and entry.run not in self._dead]
        rest = [entry for entry in entries if entry not in live]
        shown = roll.shown.get(user)
        if live and shown is None and self._is_spent(roll, user):
            live, rest = [], entries
        if not live:
            roll.waiting.pop(user, None)
            self._admit(roll)
            if shown is not None:
                # Above all that vouched for the member, so that no home can take any of it for a reason to join again.
                newest = max((shown.offset, *(entry.offset for entry in entries)))
                return self._tell(roll, user, "leave", (newest,), shown.info)
            # While it may be told by a join that was sent, its entries are what another home would end it by.
            return [] if user in roll.joining else self._clean(roll, user, rest)
        changes = self._clean(roll, user, rest)
        latest = max(live, key=lambda entry: entry.offset)
        if shown is None:
            if user in roll.joining:
                return changes
            if len(roll.shown) + len(roll.joining) >= self._most:
                roll.waiting[user] = None
                return changes
            version = (min(entry.offset for entry in live),)
            return changes + self._tell(roll, user, "join", version, latest.info)
        roll.waiting.pop(user, None)
        if latest.offset > shown.offset and latest.info != shown.info:
            return changes + self._tell(roll, user, "update", (shown.offset,), latest.info)
        if self._is_old(shown, wall):
            return changes + self._tell(roll, user, "update", (shown.offset,), shown.info)
        return changes

    def _is_spent(self, roll: Roll, user: str) -> bool:
        """Whether a join was refused for a leave that came after all that vouches for it.

        So it was ended although its node was alive, and is told again when that node vouches again.
        """
        refused = roll.refused.get(user)
        if refused is None or self._reached(presence(roll.channel)) < refused:
            return False
        del roll.refused[user]
        roll.sent.pop(user, None)
        return True

    def _tell(self, roll: Roll, user: str, kind: Kind, version: tuple[int, ...], info: bytes) -> list[Change]:
        if roll.sent.get(user) == kind:
            return []  # it is stored, or another home was first: that is heard of
        if kind == "join":
            roll.joining[user] = None
        roll.sent[user] = kind
        value = encode(Member(user, msgspec.Raw(info)))
        draft = Draft(presence(roll.channel), kind, value, new_id(), key=user, version=version,
                      deleted=kind == "leave", ttl=self._life)  # fmt: skip
        return [Change(kind, roll, user, draft)]

    def _clean(self, roll: Roll, user: str, entries: Iterable[Vouched]) -> list[Change]:
        changes = []
        for entry in entries:
            if entry.spent:
                continue
            entry.spent = True
            draft = Draft(table(roll.partition), "clean", b"null", new_id(), key=entry.key, version=(entry.number, 1),
                          deleted=True, ttl=self._life)  # fmt: skip
            changes.append(Change("clean", roll, user, draft, entry))
        return changes

    def done(self, change: Change, outcome: Outcome, held: int = 0) -> None:
        """How a change went. `held` is the offset of what it was refused for as `stale`."""
        roll, user, place = change.roll, change.user, (change.roll.channel, change.user)
        roll.busy[user] -= 1
        if not roll.busy[user]:
            del roll.busy[user]
        if outcome != "full":
            (self._later if outcome == "again" else self.dirty)[place] = None
        if change.entry is not None:
            change.entry.spent = outcome != "again"
            return
        if outcome == "stored" or roll.sent.get(user) != change.kind:
            return  # or it was heard of already
        if change.kind == "join":
            roll.joining.pop(user, None)
        if outcome == "stale":
            if change.kind == "join":
                roll.refused[user] = held
            return
        del roll.sent[user]
        if outcome == "full":
            roll.waiting[user] = None

    def _admit(self, roll: Roll) -> None:
        """Somebody has left: whoever waits may have the place."""
        room = self._most - len(roll.shown) - len(roll.joining)
        while roll.waiting and room > 0:
            user = next(iter(roll.waiting))
            del roll.waiting[user]
            self.dirty[roll.channel, user] = None
            room -= 1


def _info(data: bytes) -> bytes:
    try:
        return bytes(decode_member(data).info)
    except msgspec.DecodeError as error:
        log.warning("a member cannot be read by this version: %s", error)
        return b"null"
