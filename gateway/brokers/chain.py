"""Which live messages a node has provably seen: one chain per partition, with no I/O.

Each live frame names the offset before it in its partition and the history it was written in. Where both fit, the
frame is passed on and the watermark moves; where they do not, the partition is *due*: its frames are held back until
the store has told how far it is, and what lay between is a gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from gateway.brokers.base import Events
from gateway.message import Message

HELD_FRAMES = 10_000  # per partition, while the store is asked
HELD_BYTES = 16 << 20
UNKNOWN = -1  # the watermark of a partition that is new here
ANSWERED = 1.0  # seconds that an acknowledgement may take from this node to whoever published


class Known(msgspec.Struct, frozen=True, gc=False):
    """The highest offset that a node knows of in one history, and when it was last told anything of that."""

    offset: int
    heard: float


class Claim(NamedTuple):
    """What a node tells the store it knows of: an offset, the history it was told in, and how long ago at least.

    `age` is in microseconds, counted from when whoever published had heard of it too: who was told of a loss before
    that has to be told again. A duration, because a node's clock is none that the store knows.
    """

    offset: int
    history: str
    age: int


NOTHING = Known(0, 0.0)


def _both(known: Known | None, offset: int, heard: float) -> Known:
    if known is None or (offset >= known.offset and heard >= known.heard):
        return Known(offset, heard)
    return Known(max(known.offset, offset), max(known.heard, heard))


class Frame(msgspec.Struct):
    """One live message as the store announced it."""

    partition: int
    before: int  # the offset before this one in the partition
    history: str
    message: Message
    sure: bool = True  # of its offset and history, which a node of some stores has to work out from what it knows


@dataclass(slots=True)
class Turn:
    """One history ended at `before` and the next begins at `offset`, with nothing lost between the two."""

    partition: int
    before: int
    offset: int
    old: str
    new: str


@dataclass(slots=True)
class Followed:
    """A subscribed partition. `held` is None while live frames pass; else they wait in it for the store's answer."""

    watermark: int
    history: str
    heard: float  # when the watermark moved last
    held: list[Frame | Turn] | None = None
    held_bytes: int = 0
    dropped: bool = False  # the answer may not cover all that came meanwhile: then the store is asked again


@dataclass(slots=True)
class Chain:
    """`known`: by partition and history, what this node was acknowledged, read or had to hold back.

    `clock` counts seconds, and is compared with itself alone.
    """

    events: Events
    clock: Callable[[], float] = time.monotonic
    followed: dict[int, Followed] = field(default_factory=dict)
    due: set[int] = field(default_factory=set)
    known: dict[int, dict[str, Known]] = field(default_factory=dict)
    late: dict[int, int] = field(default_factory=dict)  # offsets the store has issued and this node has not seen yet
    later: dict[int, int] = field(default_factory=dict)  # the same, since the last `overdue`
    _told: dict[int, dict[str, Known]] = field(default_factory=dict)  # the claims that the next answer is about

    def begin(self, partition: int, top: int, history: str) -> None:
        """Follow a partition from where the store says it is, in answer to this partition's claims."""
        self._settle(partition, top, history)
        self.followed[partition] = Followed(top, history, self.clock())
        self.events.watermark(partition, top)

    def expect(self, partition: int) -> None:
        """Follow a partition whose frames may come before the store has said where it is: until then they wait.

        It is not due: whoever follows it asks, once the subscription is confirmed.
        """
        if partition not in self.followed:
            self.followed[partition] = Followed(UNKNOWN, "", self.clock(), held=[])

    def end(self, partition: int) -> None:
        self.followed.pop(partition, None)
        self.due.discard(partition)

    def frame(self, frame: Frame) -> None:
        """Pass a live frame on, drop it as seen, or hold it back and make its partition due."""
        at = self.followed.get(frame.partition)
        if at is None:
            return
        message = frame.message
        if at.held is not None:
            self._hold(at, frame)
        elif frame.history != at.history:
            self._ask(frame.partition, at, frame)
        elif message.offset <= at.watermark:
            return
        elif frame.before != at.watermark:
            self._ask(frame.partition, at, frame)
        else:
            self.events.message(frame.partition, message)  # should that fail, it counts as not told
            at.watermark, at.heard = message.offset, self.clock()

    def acknowledged(self, partition: int, offset: int, history: str) -> None:
        """Remember a publish of this node: should the store lose it, this node is the witness."""
        self._know(partition, offset, history)

    def suspect(self, partitions: Iterable[int]) -> None:
        """Hold these partitions until the store has been asked: the connection was cut, or lost them."""
        for partition in partitions:
            at = self.followed.get(partition)
            if at is None:
                continue
            if at.held is None:
                self._ask(partition, at, None)
            else:  # the answer that is waited for may know nothing of why
                at.dropped = True

    def read(self, partition: int, top: int, history: str) -> bool:
        """Remember what a page or snapshot says of its partition; False when this node was told of more already.

        Then the store lost something and is to be asked before the page is used. A reader's position may rest on what
        was read alone, so a node is the witness of that too.
        """
        self._know(partition, top, history)
        at = self.followed.get(partition)
        return at is None or at.watermark <= top

    def watermark(self, partition: int) -> int:
        """All up to here was told; UNKNOWN of what is not followed."""
        at = self.followed.get(partition)
        return UNKNOWN if at is None else at.watermark

    def highest(self, partition: int) -> int:
        """The highest offset this node knows of in a partition, in whatever history."""
        return max([0, self.watermark(partition), *(known.offset for known in self.known.get(partition, {}).values())])

    def history(self, partition: int) -> str:
        """The history that a publish is to find in a partition, or the store is to be checked first; "" for any.

        A node that knows of more than one names them all, which is none that a store is in.
        """
        known = self.known.get(partition)
        if known is None:
            return ""
        return next(iter(known)) if len(known) == 1 else "+".join(sorted(known))

    def claims(self, partition: int) -> list[Claim]:
        """The highest offsets this node knows of in a partition, each with the history it was written in.

        One question a partition at a time: the next answer is taken to be about these.
        """
        told = dict(self.known.get(partition, ()))
        at = self.followed.get(partition)
        if at is not None and at.watermark != UNKNOWN:
            told[at.history] = _both(told.get(at.history), at.watermark, at.heard)
        self._told[partition] = told
        since = self.clock() - ANSWERED
        return [
            Claim(known.offset, history, max(0, int((since - known.heard) * 1_000_000)))
            for history, known in told.items()
        ]

    def answered(self, partition: int, top: int, history: str) -> None:
        """The store's answer to this partition's claims: go on from `top`, behind a gap if that is ahead of us."""
        told = self._settle(partition, top, history)
        self.due.discard(partition)
        at = self.followed.get(partition)
        if at is None:
            return
        at.history, at.heard = history, self.clock()
        if at.watermark == UNKNOWN:
            at.watermark = top
            self.events.watermark(partition, top)
        elif top > at.watermark:
            at.watermark = top
            self.events.gap(partition, top)
        held, at.held, at.held_bytes = at.held, None, 0
        for frame in held or ():
            if isinstance(frame, Turn):
                self.turn(frame)
            elif not frame.sure and (frame.history != history or frame.before > at.watermark):
                at.dropped = True  # the store is asked about it once more, and what it answers then covers it
            elif frame.history == history or frame.message.offset > told.get(frame.history, NOTHING).offset:
                self.frame(frame)  # else the store has told what became of it
        if at.dropped:
            at.dropped = False
            self.suspect([partition])

    def reported(self, partition: int, top: int, history: str, *, turns: bool = False) -> None:
        """The store's answer while live frames pass, over another connection than theirs: what it is ahead may be on
        its way, and so may the turn to its history where it announces `turns`. `overdue` finds what did not come."""
        at = self.followed.get(partition)
        if at is None or at.held is not None or (history != at.history and not turns):
            self.answered(partition, top, history)
            return
        self._settle(partition, top, history)
        if top > at.watermark:
            self.later[partition] = top

    def overdue(self) -> None:
        """Called at intervals: partitions that are short of what was reported before the last call are due."""
        for partition, top in self.late.items():
            at = self.followed.get(partition)
            if at is not None and at.watermark < top:
                self.suspect([partition])
        self.late, self.later = self.later, {}

    def turn(self, turn: Turn) -> None:
        """Go on in the next history, where everything up to it has been seen."""
        at = self.followed.get(turn.partition)
        if at is None:
            return
        if at.held is not None:
            at.held.append(turn)
        elif (at.history, at.watermark) == (turn.old, turn.before):
            at.history, at.watermark, at.heard = turn.new, turn.offset, self.clock()
            self.events.watermark(turn.partition, turn.offset)
        elif at.history != turn.new or at.watermark < turn.offset:
            self._ask(turn.partition, at, None)

    def _settle(self, partition: int, top: int, history: str) -> dict[str, Known]:
        """What was told stands for itself no longer: the answer covers it. Returns it.

        But not what came since, be it of a lower offset: whoever was told of a loss before that is to be told again.
        """
        told = self._told.pop(partition, {})
        known = self.known.get(partition)
        if known is not None:
            self.known[partition] = later = {
                name: at for name, at in known.items()
                if at.offset > (before := told.get(name, NOTHING)).offset or at.heard > before.heard
            }  # fmt: skip
            later[history] = _both(later.get(history), top, self.clock())
        return told

    def _know(self, partition: int, offset: int, history: str) -> None:
        known = self.known.get(partition)
        if known is None:
            self.known[partition] = {history: Known(offset, self.clock())}
        else:
            known[history] = _both(known.get(history), offset, self.clock())

    def _ask(self, partition: int, at: Followed, frame: Frame | None) -> None:
        at.held = []
        self.due.add(partition)
        if frame is not None:
            self._hold(at, frame)

    def _hold(self, at: Followed, frame: Frame) -> None:
        assert at.held is not None
        if frame.sure:
            self._know(frame.partition, frame.message.offset, frame.history)
        if len(at.held) < HELD_FRAMES and at.held_bytes + frame.message.size <= HELD_BYTES:
            at.held.append(frame)
            at.held_bytes += frame.message.size
        else:
            at.dropped = True
