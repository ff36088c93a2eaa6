"""`gateway.transports.cork`: one write a turn, in slices, and a message timed to the last of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from gateway.message import Message
from gateway.session import Session
from gateway.transports.cork import LOOK, SLICE, Cork
from tests.support.hubs import Node


class Line:
    """Writes what it has, which may take long."""

    corked = False

    def __init__(self, cork: Cork, session: Session, takes: float = 0.0) -> None:
        self.cork, self.session, self.takes = cork, session, takes
        self.flushed = 0
        session.carrier = self

    def wake(self) -> None:
        if not self.corked:
            self.cork.add(self)

    def flush(self) -> None:
        self.flushed += 1
        self.session.take()
        self.session.sent()
        until = time.perf_counter() + self.takes
        while time.perf_counter() < until:
            pass

    def abort(self) -> None:
        raise AssertionError("a line was cut off")


def crowd(count: int, **line: Any) -> tuple[Node, list[Line]]:
    """So many lines whose sessions follow one channel live."""
    node = Node()
    cork = Cork(node.hub, node.hub.metrics)
    sessions = [node.join("topic:a") for _ in range(count)]
    for session in sessions:
        node.reads(session)
    return node, [Line(cork, session, **line) for session in sessions]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def says(node: Node, offset: int, ago: float = 0.0) -> None:
    node.hub.message(1, Message("topic:a", offset, "id", "test", b"1", int((time.time() - ago) * 1000)))


async def test_a_message_is_timed_once_however_many_it_goes_to() -> None:
    node, lines = crowd(100)
    metrics = node.hub.metrics
    says(node, 200, ago=0.3)
    says(node, 201, ago=0.3)
    await turns(2)
    assert [line.flushed for line in lines] == [1] * 100
    assert (sum(metrics.delivery.counts), sum(metrics.fanout.counts)) == (1, 1)
    assert 0.3 <= metrics.delivery.sum < 5
    assert 0 < metrics.fanout.sum < metrics.delivery.sum


async def test_what_is_no_message_is_not_timed() -> None:
    node, lines = crowd(1)
    lines[0].wake()
    await turns(2)
    assert lines[0].flushed == 1
    assert not sum(node.hub.metrics.delivery.counts)


async def test_a_fan_out_in_slices_is_timed_to_its_last_connection() -> None:
    """And what comes while it goes on neither ends it early nor begins another."""
    takes = SLICE / LOOK * 1.1  # so that each slice ends after its first look
    node, lines = crowd(3 * LOOK, takes=takes)
    metrics = node.hub.metrics
    says(node, 200)
    await turns(1)
    assert 0 < sum(line.flushed for line in lines) < len(lines)
    says(node, 201)
    while sum(metrics.fanout.counts) == 0:
        await turns(1)
    assert all(line.flushed for line in lines)
    assert metrics.fanout.sum >= 3 * LOOK * takes * 0.99
    await turns(10)
    assert sum(metrics.fanout.counts) == 1


async def test_a_clock_behind_the_stores_counts_as_no_time() -> None:
    node, _ = crowd(1)
    says(node, 200, ago=-5)
    await turns(2)
    assert node.hub.metrics.delivery.sum == 0
    assert sum(node.hub.metrics.delivery.counts) == 1


async def test_a_connection_that_cannot_be_written_to_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    node, lines = crowd(3)
    aborted: list[Line] = []

    def fail() -> None:
        raise RuntimeError("broken")

    lines[1].flush = fail  # type: ignore[method-assign]
    lines[1].abort = lambda: aborted.append(lines[1])  # type: ignore[method-assign]
    says(node, 200)
    await turns(2)
    assert (lines[0].flushed, lines[2].flushed, aborted) == (1, 1, [lines[1]])
    assert sum(node.hub.metrics.fanout.counts) == 1
    assert "could not be written to" in caplog.text
