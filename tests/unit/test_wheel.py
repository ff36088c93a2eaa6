"""The timing wheel: everything comes up once its time has come, however late the wheel is turned."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.wheel import Slot, Wheel


class Entry:
    slot: Slot | None = None

    def __init__(self, name: str) -> None:
        self.name = name


def names(entries: Iterable[Entry]) -> list[str]:
    return [entry.name for entry in entries]


def test_what_was_scheduled_before_the_first_turn_comes_up_with_it() -> None:
    wheel: Wheel[Entry] = Wheel()
    wheel.schedule(Entry("early"), 100.0)
    wheel.schedule(Entry("later"), 104.0)
    wheel.schedule(Entry("never"), 200.0)
    assert names(wheel.due(110.0)) == ["early", "later"]
    assert names(wheel.due(120.0)) == []
    assert len(wheel) == 1


def test_nothing_comes_up_before_its_time_or_twice() -> None:
    wheel: Wheel[Entry] = Wheel()
    assert names(wheel.due(10.0)) == []
    a, b = Entry("a"), Entry("b")
    wheel.schedule(a, 11.0)
    wheel.schedule(b, 11.0)
    wheel.cancel(b)
    wheel.schedule(a, 12.0)
    assert names(wheel.due(11.9)) == []
    assert names(wheel.due(12.5)) == ["a"]
    assert names(wheel.due(13.0)) == []
