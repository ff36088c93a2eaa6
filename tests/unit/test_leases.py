"""What silence makes of jobs, and what the parts of a job make of it."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import job as jobs
from gateway.brokers.memory_store import MemoryStore
from gateway.errors import Problem
from gateway.job import State
from gateway.leases import Leases, Part, whole
from gateway.settings import Settings

CLOCK = 1_763_712_345_000
SETTINGS = Settings(partitions=1)


def state(phase: str = "started", job: str = "a", attempt: int = 1, **more: Any) -> State:
    if phase in ("started", "progress"):
        more = {"run": CLOCK, "lease_ms": 10_000} | more
    return jobs.state_of(job, jobs.parse(msgspec.json.encode({"state": phase} | more)), attempt, CLOCK)


def told(leases: Leases, now: float) -> list[tuple[str, str | None]]:
    """What is due, and heard again as it comes back from the store."""
    found = [jobs.missed(each, CLOCK) for each in leases.due(now)]
    for each in found:
        leases.heard(each, now)
    return [(each.state, each.reason) for each in found]


def test_a_missed_lease_is_stalled_and_a_second_one_lost() -> None:
    leases = Leases()
    leases.heard(state(), 100)
    assert told(leases, 109.9) == []
    assert told(leases, 110) == [("stalled", None)]
    assert told(leases, 119.9) == []
    assert told(leases, 120) == [("failed", "lost")]
    assert told(leases, 1000) == []
    assert leases.idle


def test_what_is_due_is_told_once_until_it_is_heard() -> None:
    leases = Leases()
    leases.heard(state(), 0)
    assert len(leases.due(10)) == 1
    assert leases.due(100) == []
    leases.grant(100)
    assert len(leases.due(110)) == 1, "it could not be stored: again, after a full lease"


def test_a_sign_of_life_an_end_and_being_forgotten_end_the_wait() -> None:
    leases = Leases()
    leases.heard(state(seq=1), 0)
    leases.heard(state(seq=2), 9)
    assert told(leases, 18.9) == []
    leases.heard(state("succeeded"), 18)
    assert told(leases, 100) == []
    leases.heard(state(job="b"), 0)
    leases.forgot("b")
    assert leases.idle


@pytest.mark.parametrize("phase", ["queued", "retrying", "cancelled"])
def test_only_what_runs_has_a_lease(phase: str) -> None:
    leases = Leases()
    leases.heard(state(phase, lease_ms=10_000), 0)
    leases.heard(state(job="b", lease_ms=None), 0)
    assert leases.idle


def test_whoever_was_not_listening_grants_a_full_lease() -> None:
    leases = Leases()
    leases.begin([state()], 1000)
    assert told(leases, 1009) == []
    leases.grant(1009)
    assert told(leases, 1018) == []
    leases.extend(5)
    assert told(leases, 1023) == []
    assert told(leases, 1024) == [("stalled", None)]
    leases.begin([], 1025)
    assert leases.idle


@settings(deadline=None)
@given(st.lists(st.sampled_from(["beat", "home a", "home b", "both hear", "end"]), max_size=30), st.randoms())
def test_two_homes_write_each_missed_lease_once(steps: list[str], rnd: random.Random) -> None:
    """Two nodes that both believe to be home, each with a clock and a view of its own."""
    store, homes, seq, now = MemoryStore(SETTINGS), (Leases(), Leases()), 1, [0.0, 500.0]
    stored: list[State] = []

    def put(state: State) -> None:
        try:
            store.publish(jobs.draft("jobs:job.a", state, SETTINGS))
        except Problem as problem:
            assert problem.code == "stale_version", problem  # noqa: PT017 - what else it may raise is a fault
        else:
            stored.append(state)

    def hear(home: int) -> None:
        homes[home].heard(jobs.decode(store.snapshot("jobs:job.a").messages[0].data), now[home])

    put(state(seq=seq))
    hear(0)
    hear(1)
    for step in steps:
        if step == "beat":
            seq += 1
            put(state(seq=seq))
        elif step == "end":
            put(state("succeeded"))
        elif step == "both hear":
            hear(0)
            hear(1)
        else:
            home = step == "home b"
            now[home] += rnd.choice([1, 10, 20])
            for due in homes[home].due(now[home]):
                put(jobs.missed(due, CLOCK))
    versions = [jobs.version_of(each) for each in stored]
    assert versions == sorted(set(versions)), "each once, and each above the one before"
    ends = [each for each in stored if each.final]
    assert ends == stored[len(stored) - 1 :][: len(ends)], "nothing follows an end"


# ---------------------------------------------------------------- a whole and its parts


def part(phase: str = "started", weight: float = 1.0, fraction: float = 0.0, *, lost: bool = False) -> Part:
    done = phase in jobs.FINAL and phase != "cancelled" and not lost
    return Part(weight, 1.0 if done else fraction, phase, lost, 0 if phase == "queued" else CLOCK)


def made(parts: list[Part], **more: Any) -> tuple[Any, ...] | None:
    found = whole(state("queued", "w", **{"children": 2} | more), parts, CLOCK)
    if found is None:
        return None
    assert found.progress is not None
    return found.state, found.final, found.progress.done, found.progress.total


def test_a_whole_is_as_far_as_its_parts() -> None:
    assert made([]) is None
    assert made([part("queued")]) is None
    assert made([part()]) == ("progress", False, 0, 2)
    assert made([part(fraction=0.5), part(fraction=0.25)]) == ("progress", False, 0.75, 2)
    assert made([part(weight=3, fraction=0.5)]) == ("progress", False, 1.5, 4)
    assert made([part("succeeded"), part("retrying")]) == ("progress", False, 1, 2)


def test_a_whole_ends_with_its_last_part() -> None:
    assert made([part("succeeded"), part("succeeded")]) == ("succeeded", True, 2, 2)
    assert made([part("succeeded"), part("dead_lettered")]) == ("failed", True, 2, 2)
    assert made([part("succeeded"), part("cancelled", fraction=0.5)]) == ("cancelled", True, 1.5, 2)
    assert made([part("succeeded")]) == ("progress", False, 1, 2), "one has not been heard of"
    lost = made([part("succeeded"), part("failed", fraction=0.5, lost=True)])
    assert lost == ("failed", False, 1.5, 2), "for the time being"
    assert made([part("failed"), part("failed", lost=True)]) == ("failed", True, 1, 2)


def test_a_part_more_than_was_said_counts() -> None:
    assert made([part("succeeded"), part("succeeded"), part(fraction=0.5)]) == ("progress", False, 2.5, 3)


def test_a_part_that_is_cancelled_or_lost_got_no_further_than_it_did() -> None:
    leases = Leases()
    half: dict[str, Any] = {"parent": "w", "progress": {"done": 1, "total": 2}}
    running = state("progress", "y", **half)
    leases.begin([state("queued", "w", children=3), state("cancelled", "x", **half), state("failed", "z", **half)], 0)
    leases.heard(jobs.missed(jobs.missed(running, CLOCK), CLOCK), 0)
    [found] = leases.wholes(CLOCK)
    assert (found.state, found.progress) == ("failed", jobs.Progress(2, 3))


def test_the_same_is_not_told_twice() -> None:
    leases = Leases()
    leases.heard(state("queued", "w", children=2), 0)
    leases.heard(state(job="x", parent="w", progress={"done": 1, "total": 4}), 0)
    [first] = leases.wholes(CLOCK)
    assert leases.wholes(CLOCK) == []
    leases.heard(first, 0)
    assert leases.wholes(CLOCK) == []
    leases.heard(state(job="x", parent="w", progress={"done": 2, "total": 4}, seq=2), 0)
    [second] = leases.wholes(CLOCK)
    assert jobs.version_of(second) > jobs.version_of(first)


def test_a_late_part_leaves_an_ended_whole_alone() -> None:
    leases = Leases()
    leases.begin([state("queued", "w", children=1), state("succeeded", "x", parent="w")], 0)
    [end] = leases.wholes(CLOCK)
    assert (end.state, end.final, leases.idle) == ("succeeded", True, False)
    leases.heard(end, 0)
    leases.heard(state("queued", "late", parent="w"), 0)
    assert leases.wholes(CLOCK) == []
    assert leases.idle


def test_parts_may_be_heard_of_before_their_whole() -> None:
    leases = Leases()
    for name in "xy":
        leases.heard(state("succeeded", name, parent="w"), 0)
    assert leases.wholes(CLOCK) == []
    leases.heard(state("queued", "w", children=2), 0)
    assert [each.state for each in leases.wholes(CLOCK)] == ["succeeded"]


def test_a_lost_part_that_comes_back_brings_its_whole_along() -> None:
    leases = Leases()
    lost = jobs.missed(jobs.missed(state(job="x", parent="w"), CLOCK), CLOCK)
    leases.begin([state("queued", "w", children=1), lost], 0)
    [failed] = leases.wholes(CLOCK)
    assert (failed.state, failed.reason, failed.final) == ("failed", "lost", False)
    leases.heard(failed, 0)
    leases.heard(state(job="x", parent="w", run=CLOCK + 5), 0)
    [again] = leases.wholes(CLOCK)
    assert (again.state, again.reason) == ("progress", None)
    assert jobs.version_of(again) > jobs.version_of(failed)
