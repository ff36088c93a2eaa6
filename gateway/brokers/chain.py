"""Which live messages a node has provably seen: one chain per partition, with no I/O.

Each live frame names the offset before it in its partition and the history it was written in. Where both fit, the
frame is passed on and the watermark moves; where they do not, the partition is *due*: its frames are held back until
the store has told how far it is, and what lay between is a gap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.brokers.base import Events
from gateway.message import Message

HELD_FRAMES = 10_000  # per partition, while the store is asked
HELD_BYTES = 16 << 20
UNKNOWN = -1  # the watermark of a partition that is new here


@dataclass(slots=True)
class Frame:
    """One live message as the store announced it."""

    partition: int
    before: int  # the offset before this one in the partition
    history: str
    message: Message


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
    held: list[Frame | Turn] | None = None
    held_bytes: int = 0
    dropped: bool = False  # some could not be held: once answered, the store is asked again


@dataclass(slots=True)
class Chain:
    """`known`: by partition and history, the highest offset this node was acknowledged, read or had to hold back."""

    events: Events
    followed: dict[int, Followed] = field(default_factory=dict)
    due: set[int] = field(default_factory=set)
    known: dict[int, dict[str, int]] = field(default_factory=dict)
    late: dict[int, int] = field(default_factory=dict)  # offsets the store has issued and this node has not seen yet
    later: dict[int, int] = field(default_factory=dict)  # the same, since the last `overdue`
    _told: dict[int, dict[str, int]] = field(default_factory=dict)  # the claims that the next answer is about

    def begin(self, partition: int, top: int, history: str) -> None:
        """Follow a partition from where the store says it is, in answer to this partition's claims."""
        self._settle(partition, top, history)
        self.followed[partition] = Followed(top, history)
        self.events.watermark(partition, top)

    def expect(self, partition: int) -> None:
        """Follow a partition whose frames may come before the store has said where it is: until then they wait.

        It is not due: whoever follows it asks, once the subscription is confirmed.
        """
        if partition not in self.followed:
            self.followed[partition] = Followed(UNKNOWN, "", held=[])

    def end(self, partition: int) -> None:
        self.followed.pop(partition, None)
        self.due.discard(partition)

    def frame(self, frame: Frame) -> None:
        """Pass a live frame on, drop it as seen, or hold it back and make its partition due."""
        at = self.followed.get(frame.partition)
        if at is None:
            return
        if at.held is not None:
            self._hold(at, frame)
        elif not self.same_history(at, frame):
            self._ask(frame.partition, at, frame)
        elif frame.message.offset <= at.watermark:
            return
        elif not self.follows(at, frame):
            self._ask(frame.partition, at, frame)
        else:
            at.watermark = frame.message.offset
            self.events.message(frame.partition, frame.message)

    def same_history(self, at: Followed, frame: Frame) -> bool:
        return frame.history == at.history

    def follows(self, at: Followed, frame: Frame) -> bool:
        return frame.before == at.watermark

    def acknowledged(self, partition: int, offset: int, history: str) -> None:
        """Remember a publish of this node: should the store lose it, this node is the witness."""
        self._know(partition, offset, history)

    def suspect(self, partitions: Iterable[int]) -> None:
        """Hold these partitions until the store has been asked: the connection was cut, or lost them."""
        for partition in partitions:
            at = self.followed.get(partition)
            if at is not None and at.held is None:
                self._ask(partition, at, None)

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
        return max([0, self.watermark(partition), *self.known.get(partition, {}).values()])

    def history(self, partition: int) -> str:
        """The history that a publish is to find in a partition, or the store is to be checked first; "" for any.

        A node that knows of more than one names them all, which is none that a store is in.
        """
        return "+".join(sorted(self.known.get(partition, ())))

    def claims(self, partition: int) -> list[tuple[int, str]]:
        """The highest offsets this node knows of in a partition, each with the history it was written in.

        One question a partition at a time: the next answer is taken to be about these.
        """
        told = dict(self.known.get(partition, ()))
        at = self.followed.get(partition)
        if at is not None and at.watermark != UNKNOWN:
            told[at.history] = max(at.watermark, told.get(at.history, 0))
        self._told[partition] = told
        return [(offset, history) for history, offset in told.items()]

    def answered(self, partition: int, top: int, history: str) -> None:
        """The store's answer to this partition's claims: go on from `top`, behind a gap if that is ahead of us."""
        told = self._settle(partition, top, history)
        self.due.discard(partition)
        at = self.followed.get(partition)
        if at is None:
            return
        at.history = history
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
            elif frame.history == history or frame.message.offset > told.get(frame.history, 0):
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
            at.history, at.watermark = turn.new, turn.offset
            self.events.watermark(turn.partition, turn.offset)
        elif at.history != turn.new or at.watermark < turn.offset:
            self._ask(turn.partition, at, None)

    def _settle(self, partition: int, top: int, history: str) -> dict[str, int]:
        """What was told stands for itself no longer: the answer covers it. Returns it."""
        told = self._told.pop(partition, {})
        known = self.known.get(partition)
        if known is not None:
            later = {name: offset for name, offset in known.items() if offset > told.get(name, 0)}
            later[history] = max(top, later.get(history, 0))
            self.known[partition] = later
        return told

    def _know(self, partition: int, offset: int, history: str) -> None:
        known = self.known.setdefault(partition, {})
        known[history] = max(offset, known.get(history, 0))

    def _ask(self, partition: int, at: Followed, frame: Frame | None) -> None:
        at.held = []
        self.due.add(partition)
        if frame is not None:
            self._hold(at, frame)

    def _hold(self, at: Followed, frame: Frame) -> None:
        assert at.held is not None
        self._know(frame.partition, frame.message.offset, frame.history)
        if len(at.held) < HELD_FRAMES and at.held_bytes + frame.message.size <= HELD_BYTES:
            at.held.append(frame)
            at.held_bytes += frame.message.size
        else:
            at.dropped = True
