"""The retry decision alone, by a clock and dice of the test's own."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from publisher import Refused, Retry, TargetsFailed, Unavailable
from publisher.exchange import Exchange
from publisher.message import prepare


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def exchange(count: int, clock: Clock, jitter: float = 1.0, retry: Retry | None = None) -> Exchange:
    entries = [prepare({"channel": f"topic:{n}", "id": f"id-{n}"}) for n in range(count)]
    return Exchange(entries, retry or Retry(), clock=clock, jitter=lambda: jitter)


def answer(line: int, body: dict[str, Any]) -> bytes:
    result = {"channel": body["channel"], "offset": 5, "id": body["id"]}
    return json.dumps({"line": line, "results": [result]}).encode()


def test_waits_double_up_to_the_cap_and_are_drawn_from_zero() -> None:
    clock = Clock()
    for jitter, expected in ((1.0, [0, 0.2, 0.4, 0.8, 1.0, 1.0]), (0.0, [0] * 6), (0.5, [0, 0.1, 0.2, 0.4, 0.5, 0.5])):
        tries = exchange(1, clock, jitter, Retry(base=0.2, cap=1.0))
        waits = []
        for _ in expected:
            request = tries.next()
            assert request is not None
            waits.append(request.delay)
            tries.cut(ConnectionError("gone"))
        assert waits == pytest.approx(expected)


def test_retry_after_is_the_least_that_is_waited() -> None:
    for value, seconds in (("3", 3.0), ("nonsense", 0.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("-1", 0.0)):
        tries = exchange(1, Clock(), jitter=0.5)
        assert tries.next() is not None
        tries.begin(503, {"retry-after": value})
        tries.end()
        request = tries.next()
        assert request is not None
        assert request.delay == pytest.approx(seconds + 0.1)


def test_a_try_never_has_more_time_than_the_deadline_leaves() -> None:
    clock = Clock()
    tries = exchange(1, clock, 0.0, Retry(deadline=10, timeout=8))
    for passed, timeout in ((0, 8), (5, 5), (4, 1)):
        clock.now += passed
        request = tries.next()
        assert request is not None
        assert request.timeout == timeout
        tries.cut(TimeoutError())
    clock.now += 2
    assert tries.next() is None
    [outcome] = tries.outcomes
    assert isinstance(outcome.error, Unavailable)
    assert outcome.error.attempts == 3
    assert "TimeoutError" in str(outcome.error)


def test_an_answer_that_trickles_beyond_the_deadline_is_left() -> None:
    clock = Clock()
    tries = exchange(1, clock)
    tries.next()
    tries.begin(200, {})
    tries.feed(b'{"results":')
    clock.now += 31
    with pytest.raises(TimeoutError):
        tries.feed(b" ")


def test_nothing_to_do_asks_for_no_request() -> None:
    assert exchange(0, Clock()).next() is None


def test_one_message_travels_as_json_and_several_as_lines() -> None:
    for count, kind in ((1, "application/json"), (2, "application/x-ndjson")):
        request = exchange(count, Clock()).next()
        assert request is not None
        assert request.headers["Content-Type"] == kind
        assert request.body.count(b"\n") == count - 1


def test_all_targets_refused_are_told_by_channel() -> None:
    tries = Exchange([prepare({"channels": ["jobs:1", "topic:a"]})], Retry())
    tries.next()
    tries.begin(200, {})
    tries.feed(
        b'{"results":[{"channel":"jobs:1","error":{"status":403,"code":"reserved_channel","detail":"no"}},'
        b'{"channel":"topic:a","offset":5,"id":"x"}]}'
    )
    tries.end()
    assert tries.next() is None
    [outcome] = tries.outcomes
    assert isinstance(outcome.error, TargetsFailed)
    assert outcome.error.receipts[0].channel == "topic:a"
    refusal = outcome.error.errors["jobs:1"]
    assert isinstance(refusal, Refused)
    assert (refusal.code, str(outcome.error)) == ("reserved_channel", "1 of 2 targets failed; jobs:1: no")


@given(st.integers(1, 8), st.data())
def test_every_message_gets_exactly_one_outcome_whatever_happens(count: int, data: st.DataObject) -> None:
    clock = Clock()
    tries = exchange(count, clock, retry=Retry(deadline=1.0))
    sent = dict.fromkeys((f"id-{n}" for n in range(count)), 0)
    stored: set[str] = set()
    while (request := tries.next()) is not None:
        clock.now += request.delay + 0.01
        bodies = [json.loads(line) for line in request.body.split(b"\n")]
        for body in bodies:
            assert body["id"] not in stored, "an acknowledged message was sent again"
            sent[body["id"]] += 1
        if data.draw(st.booleans(), "refused as a whole"):
            tries.begin(data.draw(st.sampled_from([429, 500, 503]), "status"), {})
            tries.end()
            continue
        tries.begin(200, {})
        lines = [answer(n, body) for n, body in enumerate(bodies, 1)]
        kept = data.draw(st.integers(0, len(lines)), "lines that arrive")
        whole = b"".join(line + b"\n" for line in lines[:kept]) + (lines[kept][:9] if kept < len(lines) else b"")
        stored |= {body["id"] for body in bodies[:kept]}
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=3), "pieces"))
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            tries.feed(whole[start:end])
        if kept < len(lines) or data.draw(st.booleans(), "cut at the end"):
            tries.cut(ConnectionError("cut"))
        else:
            tries.end()
    outcomes = tries.outcomes
    assert [outcome.number for outcome in outcomes] == list(range(1, count + 1))
    for outcome in outcomes:
        if outcome.error is None:
            assert outcome.receipt.id in stored
        else:
            assert isinstance(outcome.error, Unavailable)
            assert outcome.error.id not in stored


def test_the_last_try_says_why_it_is_unavailable() -> None:
    clock = Clock()
    tries = exchange(1, clock, jitter=0.0, retry=Retry(deadline=5))
    tries.next()
    tries.begin(503, {"retry-after": "1"})
    tries.end()
    tries.next()
    tries.cut(ConnectionError("gone"))
    clock.now += 6
    assert tries.next() is None
    [outcome] = tries.outcomes
    assert isinstance(outcome.error, Unavailable)
    assert (outcome.error.status, outcome.error.retry_after) == (None, None)
    assert str(outcome.error) == "not acknowledged after 2 tries (deadline 5 s): gone"


def test_an_answer_that_ends_early_is_told_as_such() -> None:
    clock = Clock()
    tries = exchange(2, clock, retry=Retry(deadline=5))
    tries.next()
    tries.begin(200, {})
    tries.feed(answer(1, {"id": "id-0", "channel": "topic:0"}) + b"\n")
    tries.end()
    clock.now += 6
    assert tries.next() is None
    stored, unknown = tries.outcomes
    assert stored.receipt.id == "id-0"
    assert isinstance(unknown.error, Unavailable)
    assert (unknown.error.status, unknown.error.id) == (200, "id-1")
    assert str(unknown.error).endswith("the gateway's answer ended early")


def test_a_request_says_which_span_of_the_application_it_is_made_in() -> None:
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        inside = exchange(1, Clock()).next()
    outside = exchange(1, Clock()).next()
    assert inside is not None
    assert outside is not None
    assert inside.headers["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert "traceparent" not in outside.headers


def test_an_opentelemetry_that_another_thread_is_just_importing_has_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", ModuleType("opentelemetry.trace"))
    request = exchange(1, Clock()).next()
    assert request is not None
    assert "traceparent" not in request.headers
