"""How fast clients are sent away, and that what a node needs for its end is what the settings count on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cluster import LAST_WORD
from gateway.drain import Pace
from gateway.node import LAST_WORDS
from gateway.server import LAST_REQUESTS
from gateway.settings import ENDING


@given(st.integers(1, 1000), st.floats(1, 600))
def test_clients_leave_evenly_and_within_the_window(clients: int, window: float) -> None:
    pace = Pace(clients, window, budget=0)
    times = [pace.after(index) for index in range(clients)]
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] < window
    for first in {0, clients // 2, clients - 1}:  # any second that begins there
        within = sum(times[first] <= time < times[first] + 1 for time in times)
        assert within <= pace.rate + 1.01


@pytest.mark.parametrize(
    ("clients", "window", "budget", "hasty"),
    [(8000, 8, 1000, False), (8001, 8, 1000, True), (1, 8, 0, True), (100, 0, 100, False), (101, 0, 100, True)],
)
def test_a_window_is_too_short_where_the_others_take_fewer(
    clients: int, window: float, budget: float, hasty: bool
) -> None:
    """With hardly any window at all everybody leaves within a second."""
    assert Pace(clients, window, budget).hasty is hasty


def test_the_settings_count_on_the_time_that_the_end_takes() -> None:
    assert LAST_WORDS + LAST_REQUESTS + LAST_WORD == ENDING
