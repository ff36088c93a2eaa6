"""The hub where things get tight: gaps, slow readers, a budget that is used up."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.brokers.base import Snapshot
from gateway.session import Calls
from tests.support.hubs import SIZE, Node, P, Q, message, opened, page, reset, seen, welcome


@pytest.fixture
def node() -> Node:
    return Node()


# ---------------------------------------------------------------- gaps


def test_after_a_gap_each_channel_catches_up_from_where_it_stood(node: Node) -> None:
    session = node.join("topic:a", "far:b")
    node.says(101)
    node.reads(session)
    node.hub.gap(P, 120)
    node.says(121)
    node.says(130, channel="far:b")
    assert node.wants == [("topic:a", 101)]
    node.answers(page(101, 110, top=120))
    assert node.reads_all(session) == [130, 110, 121]


def test_a_gap_that_hides_a_loss_is_told(node: Node) -> None:
    session = node.join("topic:a")
    node.reads(session)
    node.hub.gap(P, 200)
    node.answers(page(100, top=200, floor=200))
    assert node.reads(session) == [reset("lost", 100)]


def test_a_client_ahead_of_its_node_is_asked_about_again_after_a_gap(node: Node) -> None:
    session = node.join("topic:a", since=150)
    node.answers(page(150, top=150))
    node.reads(session)
    node.hub.gap(P, 120)
    node.answers(page(150, top=120))
    assert node.reads(session) == [reset("unknown", 120)]


# ---------------------------------------------------------------- slow readers


def test_a_slow_reader_misses_nothing_and_is_live_again_when_it_has_caught_up() -> None:
    node = Node(outbox_bytes=3 * SIZE)
    session, other = node.join("topic:a"), node.join("topic:a")
    node.reads(session)
    assert node.reads(other)
    for offset in range(101, 111):
        node.says(offset)
        assert node.reads(other) == [offset], "nobody else waits for it"
    assert [node.reads(session) for _ in range(4)] == [[101, 102, 103], [104, 105, 106], [107, 108, 109], [110]]
    node.says(111)
    assert node.reads(session) == [111]


def test_a_slow_reader_beyond_the_recent_messages_reads_the_store() -> None:
    node = Node(outbox_bytes=3 * SIZE, recent_bytes=2 * SIZE)
    session = node.join("topic:a")
    node.reads(session)
    node.says(*range(101, 111))
    assert node.reads(session) == [101, 102, 103]
    node.answers(page(103, 104, 105, top=110, more=True))
    node.answers(page(105, 106, 107, 108, top=110, more=True))
    assert node.reads(session) == [104, 105, 106]
    node.answers(page(106, 107, 108, top=110, more=True))
    assert node.reads_all(session) == [107, 108, 109, 110]


def test_a_slow_reader_that_trimming_overtook_gets_a_reset_in_place() -> None:
    node = Node(outbox_bytes=3 * SIZE, recent_bytes=SIZE)
    session = node.join("topic:a")
    node.reads(session)
    node.says(*range(101, 121))
    assert node.reads(session) == [101, 102, 103]
    node.answers(page(103, 119, 120, top=120, shown=False))
    assert node.reads_all(session) == [reset("trimmed", 103), 119, 120]


def test_a_slow_reader_of_a_table_gets_the_newest_values() -> None:
    node = Node(outbox_bytes=3 * SIZE)
    session = node.join("tab:a")
    node.reads(session)
    for offset in range(101, 121):
        node.says(offset, channel="tab:a", key="xy"[offset % 2])
    assert node.reads_all(session) == [101, 102, 103, 119, 120]


def test_a_reset_and_what_follows_get_through_the_smallest_outbox() -> None:
    node = Node(outbox_bytes=1, outbox_items=1)
    session = node.join("topic:a", "topic:b", since=50)
    for name in ("topic:a", "topic:b"):
        node.answers(page(50, 60, top=100, shown=False, name=name), name)
    found: list[Any] = []
    for _ in range(20):
        found += node.reads(session)
        for name, since in list(node.wants):
            later = [offset for offset in (60,) if offset > since]
            node.answers(page(since, *later, top=100, shown=since >= 59, name=name), name)
    resets = [frame for frame in found if isinstance(frame, dict) and frame["type"] == "reset"]
    assert resets == [reset("trimmed", 50), reset("trimmed", 50, "topic:b")], "told once each"
    assert [offset for offset in found if isinstance(offset, int)] == [60, 60]


# ---------------------------------------------------------------- bounds


def test_a_full_budget_takes_messages_back_from_the_largest_which_reads_them_again() -> None:
    node = Node(memory_budget=10 * SIZE, recent_bytes=0, outbox_bytes=100 * SIZE)
    slow, quick = node.join("topic:a"), node.join("topic:a")
    node.reads(slow)
    for offset in range(101, 121):
        node.says(offset)
        assert node.reads(quick)[-1] == offset
        assert node.hub.budget.used <= node.hub.budget.limit
    found = node.reads_all(slow)
    while node.wants:
        _, since = node.wants[0]
        node.answers(page(since, *range(since + 1, min(since + 4, 121)), top=120, more=since + 3 < 120))
        found += node.reads_all(slow)
    assert found == list(range(101, 121))


def test_messages_taken_back_come_before_the_reset_that_followed_them() -> None:
    node = Node(memory_budget=20 * SIZE, recent_bytes=0, outbox_bytes=100 * SIZE)
    session = node.join("topic:a")
    node.reads(session)
    node.says(101, 102)
    node.hub.gap(P, 110)
    node.answers(page(102, 110, top=110, floor=105))
    assert seen(list(session.outbox)) == [101, 102, reset("lost", 102), 110]
    node.hub._recall(session)
    node.hub.pump(session)
    node.answers(page(100, 101, 102, 110, top=110, floor=105))
    assert node.reads_all(session) == [reset("lost", 100), 101, 102, 110]


@pytest.mark.parametrize("taken", [True, False])
def test_who_holds_too_much_that_cannot_be_taken_back_is_cut_off(taken: bool) -> None:
    node = Node(memory_budget=10 * SIZE, recent_bytes=0)
    cut: list[str] = []
    stuck = node.join("tab:a", snapshot=Snapshot([message(90, "tab:a", str(n)) for n in range(40)], 100))
    stuck.carrier = Calls(lambda: None, lambda: cut.append("stuck"))
    fine = node.join("topic:a")
    fine.carrier = Calls(lambda: None, lambda: cut.append("fine"))
    if taken:
        stuck.take()  # and never sent
    node.says(101)
    assert cut == ["stuck"]
    assert stuck not in node.hub.sessions
    assert node.reads_all(fine)[0] == welcome(opened("topic:a", 100))
    assert node.hub.budget.used == 0


def test_when_all_have_left_nothing_is_kept(node: Node) -> None:
    sessions = [node.join("topic:a", "far:b", since=since) for since in (100, 50, 105)]
    node.says(101)
    for session in sessions:
        node.hub.leave(session)
    hub = node.hub
    followed = [hub.partitions[number] for number in (P, Q)]
    for number in (P, Q):
        hub.forget(number)
    assert [at.channels for at in followed] == [{}, {}]
    assert (hub.sessions, hub.partitions, hub.budget.used, hub.recent.bytes) == (set(), {}, 0, 0)
    for channel, since in list(node.wants):
        assert not hub.wanted(channel, since)
    assert hub._waiting == {}
