"""What a job's events are, and that the newest of them is its state, whatever way they come."""

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
from gateway.settings import Settings

SETTINGS = Settings(partitions=1)
NOW = 1_763_712_345_000


def state(phase: str = "started", attempt: int = 1, run: int = 0, seq: int = 0, **more: Any) -> State:
    if phase in ("started", "progress") and not run:
        run = NOW
    body = jobs.parse(msgspec.json.encode({"state": phase, "run": run, "seq": seq} | more))
    return jobs.state_of("a", body, attempt, NOW)


class Table:
    """A job in a real store, as the gateway's nodes write it."""

    def __init__(self) -> None:
        self.store = MemoryStore(SETTINGS)

    def tell(self, state: State) -> bool:
        """Whether it was newer than what the store held."""
        try:
            self.store.publish(jobs.draft("jobs:job.a", state, SETTINGS))
        except Problem as problem:
            if problem.code != "stale_version":
                raise
            return False
        return True

    @property
    def now(self) -> State:
        [message] = self.store.snapshot("jobs:job.a").messages
        return jobs.decode(message.data)


# ---------------------------------------------------------------- the order of events


@st.composite
def lives(draw: st.DrawFn) -> list[State]:
    """All that may be told of one job: attempts, each with executions that are lost or end, and what silence made."""
    told = [state("queued")]
    attempts = draw(st.integers(1, 3))
    for attempt in range(1, attempts + 1):
        for execution in range(draw(st.integers(1, 2))):
            run = NOW + 1000 * attempt + execution
            told.append(state("started", attempt, run, 1))
            for seq in range(2, 2 + draw(st.integers(0, 3))):
                told.append(state("progress", attempt, run, seq, progress={"done": seq}))
                if draw(st.booleans()):
                    told.append(jobs.missed(told[-1], NOW))
                    if draw(st.booleans()):
                        told.append(jobs.missed(told[-1], NOW))
        if attempt < attempts:
            told.append(state("retrying", attempt))
        elif draw(st.booleans()):
            told.append(state(draw(st.sampled_from(["succeeded", "failed"])), attempt))
            if told[-1].state == "failed" and draw(st.booleans()):
                told.append(state("dead_lettered", attempt))
        elif draw(st.booleans()):
            told.append(state("cancelled", attempt))
    return told


@settings(deadline=None)
@given(lives(), st.randoms(use_true_random=False), st.floats(0, 0.9))
def test_any_order_duplication_and_loss_gives_the_newest_of_what_came(
    told: list[State], rnd: random.Random, loss: float
) -> None:
    came = [each for each in told for _ in range(rnd.choice((1, 1, 2))) if rnd.random() >= loss] or told[:1]
    rnd.shuffle(came)
    table = Table()
    highest: tuple[int, ...] = (-1,)
    for each in came:
        version: tuple[int, ...] = jobs.version_of(each)
        assert table.tell(each) == (version > highest)
        highest = max(highest, version)
    assert jobs.version_of(table.now) == highest
    assert table.now == max(came, key=lambda each: (jobs.version_of(each), -came.index(each)))


@settings(deadline=None)
@given(lives())
def test_events_in_their_own_order_are_all_newer(told: list[State]) -> None:
    """But for an execution's that goes on after its redelivery began, which nobody can order."""
    table = Table()
    assert [each for each in told if not table.tell(each)] == []


@pytest.mark.parametrize("end", ["succeeded", "failed", "retrying", "dead_lettered", "cancelled"])
@pytest.mark.parametrize("late", ["queued", "started", "progress"])
def test_a_late_event_never_overwrites_an_end(end: str, late: str) -> None:
    table = Table()
    assert table.tell(state(end))
    assert not table.tell(state(late, run=0 if late == "queued" else NOW + 10**9, seq=0 if late == "queued" else 99))
    assert table.now.state == end


def test_the_first_end_of_an_attempt_is_the_one_that_counts() -> None:
    table = Table()
    assert table.tell(state("succeeded"))
    assert not table.tell(state("failed"))
    assert not table.tell(state("retrying"))
    assert table.tell(state("started", attempt=2))


def test_an_end_replaces_lost_and_a_heartbeat_revives() -> None:
    table, running = Table(), state("progress", seq=4)
    stalled = jobs.missed(running, NOW)
    lost = jobs.missed(stalled, NOW)
    assert (stalled.state, stalled.final, stalled.running) == ("stalled", False, True)
    assert (lost.state, lost.reason, lost.final, lost.running) == ("failed", "lost", False, False)
    assert table.tell(running)
    assert table.tell(stalled)
    assert table.tell(lost)
    assert not table.tell(running)
    assert table.tell(state("progress", seq=5))
    assert not table.tell(stalled)
    assert table.tell(jobs.missed(jobs.missed(table.now, NOW), NOW))
    assert table.tell(state("succeeded"))
    assert (table.now.state, table.now.final) == ("succeeded", True)


def test_a_redelivered_execution_outranks_the_lost_one() -> None:
    table, first = Table(), state("progress", run=NOW, seq=50)
    assert table.tell(first)
    assert table.tell(jobs.missed(first, NOW))
    assert table.tell(state("started", run=NOW + 1, seq=1))
    assert not table.tell(state("progress", run=NOW, seq=51))


def test_two_home_nodes_that_miss_the_same_lease_write_one_stalled() -> None:
    table, running = Table(), state("started", seq=3)
    assert table.tell(running)
    assert table.tell(jobs.missed(running, NOW))
    assert not table.tell(jobs.missed(running, NOW + 7))
    assert table.tell(jobs.missed(table.now, NOW))
    assert not table.tell(jobs.missed(table.now, NOW)), "nor lost"


def test_a_forgotten_attempt_stays_forgotten() -> None:
    table = Table()
    table.tell(state("succeeded", attempt=2))
    table.store.publish(jobs.forgotten("jobs:job.a", "a", 2, SETTINGS))
    assert not table.tell(state("dead_lettered", attempt=2))
    assert table.tell(state("started", attempt=3))


# ---------------------------------------------------------------- what is told


def test_a_state_is_whole_and_says_when() -> None:
    told = state("progress", 2, NOW - 500, 7, user="42", name="report", progress={"done": 1.5, "total": 3, "note": "x"},
                 lease_ms=30000, queued=NOW - 2000)  # fmt: skip
    assert msgspec.to_builtins(told) == {
        "job": "a", "state": "progress", "final": False, "attempt": 2, "run": NOW - 500, "seq": 7, "user": "42",
        "name": "report", "progress": {"done": 1.5, "total": 3, "note": "x"}, "lease_ms": 30000,
        "times": {"updated": "2025-11-21T08:05:45.000Z", "queued": "2025-11-21T08:05:43.000Z",
                  "started": "2025-11-21T08:05:44.500Z"},
    }  # fmt: skip


def test_a_result_arrives_as_it_was_written() -> None:
    body = jobs.parse(b'{"state":"succeeded","result":{"a" : 1.10,\n"b":null}}')
    told = jobs.draft("jobs:42", jobs.state_of("a", body, 1, NOW), SETTINGS)
    assert b'"result":{"a" : 1.10, "b":null}' in told.data
    assert (told.key, told.version, told.ttl) == ("a", (1, 1, 0, 0, 0), SETTINGS.jobs_keep)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{}", "state"), (b'{"state":"stalled"}', "enum"), (b'{"state":"lost"}', "enum"),
        (b'{"state":"started"}', "run"),
        (b'{"state":"progress","seq":1}', "run"), (b'{"state":"queued","run":1}', "run"),
        (b'{"state":"queued","extra":1}', "extra"), (b'{"state":"queued","attempt":-1}', "attempt"),
        (b'{"state":"queued","lease_ms":99}', "lease_ms"), (b'{"state":"queued","lease_ms":3600001}', "lease_ms"),
        (b'{"state":"queued","progress":{"done":-1}}', "done"), (b'{"state":"queued","children":1001}', "children"),
        (b'{"state":"queued","parent":"a b"}', "printable"), (b'{"state":"failed","error":{"type":"X"}}', "message"),
        (b'{"state":"queued","queued":9007199254740991}', "milliseconds"),
        (b'{"state":"failed","error":{"message":"' + b"x" * 4001 + b'"}}', "length"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused_with_a_sentence(body: bytes, says: str) -> None:
    with pytest.raises(Problem, match=says) as refused:
        jobs.state_of("a", jobs.parse(body), 1, NOW)
    assert refused.value.code == "bad_request"


@pytest.mark.parametrize("body", [b'{"state":NaN}', b"\xff", b'{"state":"queued","progress":{"done":NaN}}', b"{"])
def test_a_body_is_strict_json(body: bytes) -> None:
    with pytest.raises(Problem) as refused:
        jobs.parse(body)
    assert refused.value.code == "bad_json"


@pytest.mark.parametrize("job", ["", "a b", "a,b", "a*", "a\n", "x" * 197, ".", ".."])
def test_an_id_that_makes_no_channel_is_refused(job: str) -> None:
    with pytest.raises(Problem, match="job's id"):
        jobs.check_id(job)


def test_a_jobs_channel_is_its_users_its_parents_or_its_own() -> None:
    assert jobs.channel_of("a", "42") == jobs.channel_of("a", "42", "p") == "jobs:42"
    assert jobs.channel_of("a", None) == "jobs:job.a"
    assert jobs.channel_of("a", None, "p") == "jobs:job.p"
    with pytest.raises(Problem, match="user"):
        jobs.channel_of("a", "job.b")
