"""The ledger: every acknowledged publish against what each client's application saw. No I/O.

A client is owed every acknowledged message of its channels above the position at which it began. What differs is a
fault of one of these kinds:

    lost         never seen by a client that has been told, by a reset since, that something may be missing
    unannounced  never seen, and no reset told of it
    duplicated   seen twice, by offset or by id
    reordered    an offset below one that was seen before
    reissued     an offset that was given to two messages
    invented     a message that nobody published
    ended        a client that gave up
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    client: str
    channel: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.client} {self.channel}: {self.what}"


@dataclass(slots=True)
class Seen:
    """What one client saw of one channel, in its order: (offset, id), and (offset, None) for a reset."""

    began: int
    events: list[tuple[int, str | None]] = field(default_factory=list)
    offsets: set[int] = field(default_factory=set)
    resets: int = 0
    told: list[tuple[float, int]] = field(default_factory=list)  # of each reset when it came, and its offset
    reset_at: float = -1.0  # when the last reset came
    reset_place: int = -1  # and where, among the events


class Unseen(NamedTuple):
    """A message that a client is owed and has not seen."""

    client: str
    channel: str
    offset: int
    id: str
    at: float  # when it was acknowledged
    seen: Seen


class Repeat(NamedTuple):
    """An id that a client saw again under another offset: the first one's place among its events, and both offsets."""

    client: str
    channel: str
    id: str
    place: int
    first: int
    again: int
    seen: Seen


class Ledger:
    def __init__(self) -> None:
        self.tried: dict[str, str] = {}  # channel by id, of everything that was sent, acknowledged or not
        self.acknowledged: dict[str, dict[int, str]] = {}  # by channel: id by offset
        self.clients: dict[str, dict[str, Seen]] = {}
        self.faults: list[Fault] = []  # those that show at once
        self.reasons: Counter[str] = Counter()  # of resets
        self.deliveries = 0
        self.delays: list[float] = []  # seconds from acknowledgement to the application, where both are known
        self._acknowledged_at: dict[str, float] = {}

    # ---------------------------------------------------------------- what happened

    def trying(self, channel: str, id: str) -> None:
        self.tried[id] = channel

    def was_acknowledged(self, channel: str, offset: int, id: str, at: float) -> None:
        other = self.acknowledged.setdefault(channel, {}).setdefault(offset, id)
        if other != id:
            self._fault("reissued", "", channel, f"{offset} was given to {other} and to {id}")
        self._acknowledged_at[id] = at

    def began(self, client: str, channel: str, offset: int) -> None:
        self.clients.setdefault(client, {})[channel] = Seen(offset)

    def saw(self, client: str, channel: str, offset: int, id: str, at: float) -> None:
        seen = self.clients[client][channel]
        self.deliveries += 1
        if id not in self.tried:
            self._fault("invented", client, channel, f"{offset} {id}")
        last = next((at for at, what in reversed(seen.events) if what is not None), seen.began)
        if offset in seen.offsets:
            self._fault("duplicated", client, channel, f"{offset} {id} came again")
        elif offset <= last:
            self._fault("reordered", client, channel, f"{offset} after {last}")
        seen.events.append((offset, id))
        seen.offsets.add(offset)
        if id in self._acknowledged_at:
            self.delays.append(at - self._acknowledged_at[id])

    def was_reset(self, client: str, channel: str, offset: int, reason: str, at: float) -> None:
        seen = self.clients[client][channel]
        seen.reset_at, seen.reset_place = at, len(seen.events)
        seen.events.append((offset, None))
        seen.resets += 1
        seen.told.append((at, offset))
        self.reasons[reason] += 1

    def ended(self, client: str, why: str) -> None:
        self._fault("ended", client, "", why)

    # ---------------------------------------------------------------- what is wrong

    def unseen(self) -> Iterator[Unseen]:
        """What clients are owed, still or for ever."""
        for channel, acknowledged in self.acknowledged.items():
            offsets = sorted(acknowledged)
            for client, channels in self.clients.items():
                seen = channels.get(channel)
                if seen is None:
                    continue
                for offset in offsets[bisect_left(offsets, seen.began + 1) :]:
                    if offset not in seen.offsets:
                        id = acknowledged[offset]
                        yield Unseen(client, channel, offset, id, self._acknowledged_at[id], seen)

    def missing(self) -> list[Fault]:
        """The same as faults."""
        return [
            Fault("lost" if owed.at <= owed.seen.reset_at else "unannounced", owed.client, owed.channel,
                  f"{owed.offset} {owed.id}")
            for owed in self.unseen()
        ]  # fmt: skip

    def repeats(self) -> Iterator[Repeat]:
        """Ids that came twice, as where a publisher's retry was stored once more."""
        for client, channels in self.clients.items():
            for channel, seen in channels.items():
                first: dict[str, tuple[int, int]] = {}
                for place, (offset, id) in enumerate(seen.events):
                    if id is None:
                        continue
                    if id not in first:
                        first[id] = (place, offset)
                    elif first[id][1] != offset:
                        yield Repeat(client, channel, id, *first[id], offset, seen)

    def judged(self) -> list[Fault]:
        """Everything that is wrong, once nothing more comes."""
        return [*self.faults, *self.missing(), *map(duplicated, self.repeats())]

    @property
    def published(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    @property
    def resets(self) -> int:
        return self.reasons.total()

    def _fault(self, kind: str, client: str, channel: str, what: str) -> None:
        self.faults.append(Fault(kind, client, channel, what))


def duplicated(repeat: Repeat) -> Fault:
    return Fault("duplicated", repeat.client, repeat.channel, f"{repeat.id} at {repeat.first} and {repeat.again}")
