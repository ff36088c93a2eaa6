"""Sequences and offsets of a stream that went through several server processes."""

from __future__ import annotations

import pytest

from gateway.brokers import nats_lineage
from gateway.brokers.nats_lineage import Lineage

NEW = Lineage.new("2026-11-21T08:00:00Z", 1000)


def take_over(lineage: Lineage, seq: int, base: int, history: str, *, lost: bool = False) -> Lineage:
    record = lineage.record(history, f"process {history}", base, 1, ["room"], lost=lost)
    return Lineage.of(nats_lineage.decode(nats_lineage.encode(record)), seq)


def test_a_new_streams_sequences_are_its_offsets() -> None:
    assert [NEW.offset(seq) for seq in (999, 1000, 1234)] == [999, 1000, 1234]
    assert NEW.place(1234) == (1234, True)
    assert NEW.floor == 999


def test_from_a_record_on_offsets_are_shifted_and_those_before_stay() -> None:
    line = take_over(NEW, 1000, 5000, "a")
    line = take_over(line, 1010, 9000, "b")
    assert [line.offset(seq) for seq in (999, 1000, 1001, 1009, 1010, 1011)] == [999, 5000, 5001, 5009, 9000, 9001]
    assert [line.history_at(seq) for seq in (999, 1000, 1009, 1010)] == [NEW.history, "a", "a", "b"]
    assert line.takeovers == ((NEW.history, 999), ("a", 5009))


@pytest.mark.parametrize("seq", [1000, 1001, 1009, 1010, 1050])
def test_every_offset_is_placed_at_its_sequence(seq: int) -> None:
    line = take_over(take_over(NEW, 1000, 5000, "a"), 1010, 9000, "b")
    assert line.place(line.offset(seq)) == ((1010 if seq == 1009 else seq), True)  # a record after it is passed over


def test_an_offset_that_a_lost_end_once_had_is_no_position() -> None:
    line = take_over(take_over(NEW, 1000, 5000, "a"), 1010, 9000, "b")
    assert line.place(5010)[1] is False
    assert line.place(8999)[1] is False
    assert line.place(9000) == (1010, True)


def test_offsets_never_go_back_though_a_clock_does() -> None:
    line = take_over(take_over(NEW, 1000, 5000, "a"), 1010, 20, "b")
    assert line.offset(1010) > line.offset(1009)


def test_a_witness_is_believed_once() -> None:
    line = take_over(NEW, 1000, 5000, "a")
    assert not line.lost(5009, "a", top=5009)
    assert line.lost(5010, "a", top=5009)
    line = take_over(line, 1010, 9000, "b")
    assert not line.lost(5009, "a", top=9003)
    assert line.lost(5010, "a", top=9003)
    assert line.lost(5009, "never heard of", top=9003)
    line = take_over(line, 1020, 12000, "c", lost=True)
    assert line.floor == 12000
    assert not line.lost(5010, "a", top=12000)
    assert not line.lost(5009, "never heard of", top=12000)


def test_what_is_remembered_is_bounded() -> None:
    line = NEW
    for number in range(500):
        seq = 1000 + 10 * number
        record = line.record(f"h{number}", f"p{number}", 5000 + 100 * number, seq - 5, [], lost=False)
        line = Lineage.of(record, seq)
    assert len(line.segments) <= nats_lineage.SEGMENTS + 1
    assert len(line.takeovers) == nats_lineage.TAKEOVERS
    assert len(line.processes) == nats_lineage.PROCESSES
    assert line.history_at(line.seq - 1) == "h498"


def test_segments_of_messages_still_held_are_kept() -> None:
    line = NEW
    for number in range(200):
        line = Lineage.of(line.record(f"h{number}", "p", 5000 + 100 * number, 1, [], lost=False), 1000 + 10 * number)
    assert len(line.segments) == 201
