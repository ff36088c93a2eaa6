"""What a canary's connections are counted as: the clock is the test's, links are names."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from gateway.client.frames import Checkpoint, Frame, Goodbye, Message, Position, Reset, Welcome
from gateway.client.reconnect import Ended
from gateway.message import encode_cursor
from gateway.verify.result import Spread, busiest, spread
from gateway.verify.track import Tally, Track

CHANNEL = "topic:canary"


class Line:
    def __init__(self) -> None:
        self.now = 100.0
        self.began: list[int] = []
        self.tally = Tally("ws")
        self.track = Track(self.tally, CHANNEL, self.began.append, lambda: self.now)

    def see(self, link: str, *frames: Frame) -> None:
        for frame in frames:
            self.track.frame(link, frame)

    def open(self, link: str, at: int | None = None, node: str = "a") -> None:
        """A connection that presents this position, or is told 10 as its first."""
        self.track.opening(link, None if at is None else cursor(at))
        self.see(link, welcome(10 if at is None else at, node))


@pytest.fixture
def line() -> Line:
    return Line()


def cursor(offset: int) -> str:
    return encode_cursor({CHANNEL: offset})


def welcome(offset: int, node: str = "a") -> Welcome:
    return Welcome(node=node, channels=[Position(CHANNEL, offset)])


def message(*offsets: int) -> list[Frame]:
    when = datetime.now(UTC)
    return [Message(CHANNEL, at, f"m{at}", "verify", msgspec.Raw(b"1"), when) for at in offsets]


def test_it_is_owed_everything_from_its_first_position_on(line: Line) -> None:
    line.open("one")
    line.open("two", 12)
    assert line.began == [10]


def test_a_poll_is_owed_from_its_first_cursor_on(line: Line) -> None:
    line.track.opening("one", None)
    line.see("one", Welcome(node="a"), Checkpoint(cursor(7)))
    assert line.began == [7]


def test_what_comes_twice_on_one_connection_is_a_duplicate(line: Line) -> None:
    line.open("one")
    line.see("one", *message(11, 12, 12, 13, 11))
    assert (line.tally.duplicated, line.tally.reordered) == (2, 0)


def test_what_comes_too_late_is_out_of_order(line: Line) -> None:
    line.open("one")
    line.see("one", *message(11, 13, 12, 14))
    assert (line.tally.duplicated, line.tally.reordered) == (0, 1)


def test_what_lies_below_the_cursor_presented_is_a_duplicate_and_above_it_is_not(line: Line) -> None:
    line.open("one")
    line.see("one", *message(11, 12, 13))
    line.track.ended("one", Ended("cut"))
    line.open("two", 11)
    line.see("two", *message(12, 13, 14))
    assert (line.tally.duplicated, line.tally.repeated) == (0, 2)
    line.track.ended("two", Ended("cut"))
    line.open("three", 14)
    line.see("three", *message(14))
    assert line.tally.duplicated == 1


def test_a_second_connection_beside_the_first_is_judged_by_itself(line: Line) -> None:
    line.open("one")
    line.see("one", *message(11))
    line.open("two", 11)
    line.see("one", *message(12))
    line.see("two", *message(12))
    assert (line.tally.duplicated, line.tally.reordered) == (0, 0)


def test_above_a_resets_offset_all_may_come_again(line: Line) -> None:
    line.open("one")
    line.see("one", *message(11, 12), Reset(CHANNEL, "lost", 10), *message(11, 12))
    assert (line.tally.resets, line.tally.duplicated) == (1, 0)


def test_the_time_without_a_connection_is_between_two(line: Line) -> None:
    line.open("one")
    line.now = 110
    line.track.ended("one", Ended("cut"))
    line.now = 111
    line.track.opening("two", cursor(10))
    line.now = 111.5
    line.track.ended("two", Ended("refused", code=4104))
    line.now = 112
    line.track.opening("three", cursor(10))
    line.now = 112.25
    line.see("three", welcome(10))
    assert line.tally.away == [2.25]
    assert line.tally.resumes == [0.25]
    assert (line.tally.failed, line.tally.broken, line.tally.connected) == ({"4104: refused": 1}, {"cut": 1}, 1)


def test_there_is_none_where_the_next_was_opened_beside_it(line: Line) -> None:
    line.open("one")
    line.see("one", Goodbye(code=4100, after_ms=1000))
    line.now = 101
    line.open("two", 10, "b")
    line.track.ended("one", None)
    assert (line.tally.away, line.tally.connected) == ([0.0], 1)
    assert (line.tally.goodbyes, line.tally.broken) == (1, {})


def test_an_end_that_nobody_announced_is_told_from_one_that_was(line: Line) -> None:
    ends = [Ended("cut"), Ended("closed", code=4101), Ended("left", planned=True), None]
    for number, end in enumerate(ends):
        line.open(f"link {number}", 10)
        line.track.ended(f"link {number}", end)
    line.open("told", 10)
    line.see("told", Goodbye(code=4100, after_ms=1000))
    line.track.ended("told", Ended("closed"))
    assert (line.tally.goodbyes, line.tally.broken) == (4, {"cut": 1})


def test_a_goodbye_alone_opens_nothing(line: Line) -> None:
    line.track.opening("one", None)
    line.see("one", Goodbye(code=4100, after_ms=1000))
    line.track.ended("one", Ended("draining", code=4100))
    assert (line.tally.failed.total(), line.tally.goodbyes, line.tally.connected) == (1, 0, 0)


def test_who_comes_back_is_counted_at_the_node_and_a_poll_where_it_moves(line: Line) -> None:
    line.open("one", node="a")
    line.open("two", 10, node="a")
    line.see("two", Welcome(node="a"), Welcome(node="b"), Welcome(node="b"))
    assert [node for _, node in line.tally.arrivals] == ["a", "b"]


def test_the_busiest_second_is_any_second() -> None:
    times = [(0.5, "a"), (0.9, "a"), (1.4, "a"), (1.5, "a"), (1.45, "b")]
    assert busiest(times) == {"a": 3, "b": 1}


def test_a_spread_is_of_all_values() -> None:
    assert spread([]) == Spread(0, 0, 0)
    assert spread([n / 1000 for n in range(1000)]) == Spread(0.5, 0.99, 0.999)
