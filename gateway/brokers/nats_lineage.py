"""How a stream's sequences become offsets, and which server processes it has been through. No I/O.

A stream begins at the microsecond of its creation, so its sequences are offsets already. But files that were restored,
or lost their end, hand sequences out again. So whoever meets a server process that the stream does not know writes a
record into the stream first: from that record on offsets are shifted to the present, and where each process's part
ended stays known. The last record says it all.

A record is stored to stay for ever. But nats-server 2.15, when it starts, lets go of all that is older than the
stream's `max_age`, records too (seen with one replica). So the last one is in the stream's description
as well, to be read where the stream itself holds none any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from gateway.brokers.base import Unreadable

FORMAT = 1
TAKEOVERS = 32  # remembered: every server of a cluster that nodes connect to is one
PROCESSES = 64
SEGMENTS = 64  # kept at least; more while messages of theirs are held


class Segment(NamedTuple):
    start: int  # the sequence of the record it begins with, 0 for the stream's own beginning
    shift: int  # offset = sequence + shift


class TakeOver(NamedTuple):
    history: str
    end: int  # its highest offset


class Record(msgspec.Struct, frozen=True):
    """A take-over, as it is stored. Its own sequence is not known when it is written: `base` is its offset."""

    format: int
    history: str
    before: str  # the history that ends here
    base: int
    lost: bool  # something is gone that was told: nothing before this can be proven
    floor: int
    processes: list[str]
    segments: list[Segment]
    takeovers: list[TakeOver]
    keyed: list[str]  # the namespaces that were keyed, `default` for all others


class Kept(msgspec.Struct, frozen=True):
    """The last record as the stream's description has it."""

    seq: int
    record: Record


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode
_decode_kept = msgspec.json.Decoder(Kept).decode


def decode(payload: bytes) -> Record:
    """Raises Unreadable."""
    try:
        return _readable(_decode(payload))
    except msgspec.DecodeError as error:
        raise Unreadable(f"not a take-over record of format {FORMAT}: {error}") from error


def decode_kept(described: str) -> Kept:
    """Raises Unreadable."""
    try:
        kept = _decode_kept(described)
    except msgspec.DecodeError as error:
        raise Unreadable(f"not a take-over record of format {FORMAT}: {error}") from error
    _readable(kept.record)
    return kept


def _readable(record: Record) -> Record:
    if record.format != FORMAT:
        raise Unreadable(f"a take-over record has format {record.format}")
    return record


@dataclass(frozen=True, slots=True)
class Lineage:
    history: str
    seq: int  # of the last record; 0 when there is none
    floor: int
    segments: tuple[Segment, ...]
    takeovers: tuple[TakeOver, ...] = ()
    processes: tuple[str, ...] = ()
    keyed: tuple[str, ...] | None = None

    @classmethod
    def new(cls, created: str, first: int) -> Lineage:
        """Of a stream that holds no record: each creation is a history of its own."""
        return cls(f"new {created}", 0, first - 1, (Segment(0, 0),))

    @classmethod
    def of(cls, record: Record, seq: int) -> Lineage:
        shift = record.segments[-1].shift
        here = Segment(seq, max(record.base - seq, shift))
        return cls(
            record.history, seq, seq + here.shift if record.lost else record.floor, (*record.segments, here),
            (*record.takeovers, TakeOver(record.before, seq - 1 + shift))[-TAKEOVERS:], tuple(record.processes),
            tuple(record.keyed),
        )  # fmt: skip

    def record(
        self, history: str, process: str, base: int, first: int, keyed: Iterable[str], *, lost: bool
    ) -> Record:
        """The next record, by a node that is connected to `process`; `first` is the first sequence still held."""
        segments = list(self.segments)
        while len(segments) > SEGMENTS and segments[1].start <= first:
            del segments[0]
        processes = [*(p for p in self.processes if p != process), process][-PROCESSES:]
        return Record(
            FORMAT, history, self.history, base, lost, self.floor, processes, segments, list(self.takeovers),
            list(keyed),
        )  # fmt: skip

    def offset(self, seq: int) -> int:
        for segment in reversed(self.segments):
            if segment.start <= seq:
                return seq + segment.shift
        return seq + self.segments[0].shift

    def history_at(self, seq: int) -> str:
        """The history in which a sequence was written."""
        if seq >= self.seq:
            return self.history
        histories = [*(takeover.history for takeover in self.takeovers), self.history]
        for segment, history in zip(reversed(self.segments), reversed(histories), strict=False):
            if segment.start <= seq:
                return history
        return histories[0]

    def place(self, offset: int) -> tuple[int, bool]:
        """The last sequence at or below `offset`, records that follow it included; and whether it is a position here.

        One between the end of a process's part and the next record was told of something this stream has lost.
        """
        index = len(self.segments) - 1
        while index > 0 and self.segments[index].start + self.segments[index].shift > offset:
            index -= 1
        seq, known = offset - self.segments[index].shift, True
        later = [segment.start for segment in self.segments[index + 1 :]]
        if later and seq >= later[0]:
            seq, known = later[0] - 1, False
        for start in later:
            if start != seq + 1:
                break
            seq = start
        return max(seq, 0), known

    def knows(self, history: str) -> bool:
        return history == self.history or any(history == takeover.history for takeover in self.takeovers)

    def lost(self, told: int, history: str, top: int) -> bool:
        """Whether a node that was told `told` in this history has seen what is gone, and nobody has said so yet."""
        if told <= self.floor:
            return False
        if history == self.history:
            return told > top
        ends = dict(self.takeovers)
        return history not in ends or told > ends[history]
