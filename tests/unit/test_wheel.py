"""The timing wheel: everything comes up once its time has come, however late the wheel is turned."""

from __future__ import annotations

from gateway.wheel import Wheel


def test_what_was_scheduled_before_the_first_turn_comes_up_with_it() -> None:
    wheel: Wheel[str] = Wheel()
    wheel.schedule("early", 100.0)
    wheel.schedule("later", 104.0)
    wheel.schedule("never", 200.0)
    assert list(wheel.due(110.0)) == ["early", "later"]
    assert list(wheel.due(120.0)) == []
    assert len(wheel) == 1


def test_nothing_comes_up_before_its_time_or_twice() -> None:
    wheel: Wheel[str] = Wheel()
    assert list(wheel.due(10.0)) == []
    wheel.schedule("a", 11.0)
    wheel.schedule("b", 11.0)
    wheel.cancel("b")
    wheel.schedule("a", 12.0)
    assert list(wheel.due(11.9)) == []
    assert list(wheel.due(12.5)) == ["a"]
    assert list(wheel.due(13.0)) == []
