"""What is let in, decided with a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import BURST, LATEST, Admission
from gateway.errors import Problem
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.settings import Settings


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Door:
    """An admission at which people knock."""

    def __init__(self, **settings: object) -> None:
        self.clock = Clock()
        self.missing: list[str] = []
        found = Settings(**{"connections_per_address": 10**6, "max_connections": 10**6, **settings})  # type: ignore[arg-type]
        self.admission = Admission(found, Limits(found), Metrics(), lambda: self.missing, self.clock)

    def enter(self, transport: str = "websocket") -> float | None:
        """None where it was let in, else when it is to come back, in seconds."""
        try:
            self.admission.check(transport)
        except Problem as problem:
            if problem.code != "busy":
                raise
            return problem.retry_after
        self.admission.arrive(transport, "127.0.0.1")
        return None


def test_two_seconds_worth_may_come_at_once_and_then_as_many_as_the_rate_says() -> None:
    door = Door(accept_rate=100)
    assert [door.enter() for _ in range(200)] == [None] * 200
    assert door.enter() is not None
    door.clock.now += 0.5
    assert [door.enter() for _ in range(51)].count(None) == 50
    door.clock.now += 3600
    assert [door.enter() for _ in range(300)].count(None) == 200


def test_what_the_defaults_allow_is_more_than_one_address_may_have() -> None:
    """A thousand connections and a thousand requests a second are promised to every address."""
    assert Settings().accept_rate >= 2 * 1000
    door = Door()
    for _ in range(5):
        assert [door.enter() for _ in range(1000)] == [None] * 1000
        assert [door.enter("poll") for _ in range(1000)] == [None] * 1000
        door.clock.now += 1


def test_who_is_sent_away_comes_back_one_after_another_no_faster_than_the_rate() -> None:
    door = Door(accept_rate=10)
    told = [wait for _ in range(20 + 400) if (wait := door.enter()) is not None]
    assert len(told) == 400
    assert min(told) >= 1
    assert max(told) <= LATEST
    for second in range(int(LATEST)):
        assert sum(second <= wait < second + 1 for wait in told) <= 10 * (400 // (10 * 29) + 1) + 1


def test_a_storm_ends_with_everybody_let_in_as_fast_as_the_rate_allows() -> None:
    door = Door(accept_rate=100)
    began, due = door.clock.now, dict.fromkeys(range(1000), door.clock.now)
    while due:
        client = min(due, key=due.__getitem__)
        door.clock.now = max(door.clock.now, due[client])
        wait = door.enter()
        if wait is None:
            del due[client]
        else:
            due[client] = door.clock.now + wait
    took = door.clock.now - began
    assert 1000 / 100 - BURST <= took <= 1000 / 100 + 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=400))
def test_no_more_are_let_in_than_the_burst_and_the_rate_since(pauses: list[float]) -> None:
    door = Door(accept_rate=5)
    began, entered = door.clock.now, 0
    for pause in pauses:
        door.clock.now += pause / 50
        entered += door.enter() is None
        assert entered <= 5 * BURST + 5 * (door.clock.now - began) + 1e-6


def test_those_whose_credentials_take_a_while_are_counted_all_the_same() -> None:
    """They were checked before; what they take then is missing for others."""
    door = Door(accept_rate=10)
    for _ in range(30):
        door.admission.check("sse")
    for _ in range(30):
        door.admission.arrive("sse", "127.0.0.1")
    door.clock.now += 1
    assert door.enter() is not None
    door.clock.now += 0.2
    assert door.enter() is None


def test_nobody_is_let_in_before_all_is_known_and_it_is_asked_no_more_then() -> None:
    door = Door()
    door.missing = ["the broker's store does not answer"]
    assert door.enter() is not None
    assert door.enter("poll") is not None
    door.missing = []
    assert door.enter() is None
    door.missing = ["the broker's store does not answer"]
    assert door.enter() is None, "a store that goes away later is told by whoever needs it"


@pytest.mark.parametrize("sign", ["lag", "descriptor"])
def test_one_that_is_near_what_it_can_bear_lets_nobody_in(sign: str) -> None:
    door = Door(max_lag="500ms")
    assert door.enter() is None
    setattr(door.admission, sign, 10**9)
    assert door.enter() is not None
    assert door.enter("poll") is not None
    setattr(door.admission, sign, 0)
    assert door.enter() is None
    assert door.enter("poll") is None
