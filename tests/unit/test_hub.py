from __future__ import annotations

from typing import Any

import pytest

from gateway.brokers.base import Page, Snapshot
from gateway.message import Control, decode_cursor
from tests.support.hubs import SIZE, Node, P, Q, message, opened, page, partition, reset, welcome


@pytest.fixture
def node() -> Node:
    return Node()


# ---------------------------------------------------------------- joining


def test_at_the_live_end_it_is_told_its_position_and_gets_what_comes(node: Node) -> None:
    session = node.join("topic:a", "far:b")
    node.says(101, 102)
    node.says(300, channel="topic:other")
    assert node.reads(session) == [welcome(opened("topic:a", 100), opened("far:b", 100)), 101, 102]
    assert session.reached() == {"topic:a": 300, "far:b": 100}
    assert not node.wants


def test_a_position_within_the_recent_messages_costs_no_read(node: Node) -> None:
    node.says(101, 102, 103)
    session = node.join("topic:a", since=101)
    assert node.reads(session) == [welcome(opened("topic:a", 101, True)), 102, 103]
    assert not node.wants


def test_an_older_position_is_read_page_by_page_until_the_recent_messages_begin(node: Node) -> None:
    node.says(101)
    session = node.join("topic:a", since=50)
    assert node.reads(session) == [], "nothing is said before it is known"
    node.answers(page(50, 60, 70, top=101, more=True))
    assert node.reads(session) == [welcome(opened("topic:a", 50, True)), 60, 70]
    node.says(102)
    node.answers(page(70, 80, top=101))
    node.says(103)
    assert node.reads_all(session) == [80, 102, 103]


def test_a_page_is_shared_by_all_who_want_it(node: Node) -> None:
    sessions = [node.join("topic:a", since=50) for _ in range(3)]
    assert node.wants == [("topic:a", 50)]
    node.answers(page(50, 60, top=100))
    assert [node.reads(session) for session in sessions] == [[welcome(opened("topic:a", 50, True)), 60]] * 3


@pytest.mark.parametrize(
    ("answer", "entry", "then"),
    [
        pytest.param(page(50, 60, top=100, shown=False), opened("topic:a", 50, False), [reset("trimmed", 50), 60]),
        pytest.param(page(50, 60, top=100, floor=55), opened("topic:a", 50, False), [reset("lost", 50), 60]),
        pytest.param(page(50, top=40), opened("topic:a", 40, False), [reset("unknown", 40)]),
    ],
)
def test_what_cannot_be_shown_is_answered_by_a_reset(
    node: Node, answer: Page, entry: dict[str, Any], then: list[Any]
) -> None:
    session = node.join("topic:a", since=50)
    node.answers(answer)
    assert node.reads(session) == [welcome(entry), *then]


def test_a_loss_is_told_once_not_with_every_page(node: Node) -> None:
    session = node.join("topic:a", since=50)
    node.answers(page(50, 60, top=100, floor=90, more=True))
    node.answers(page(60, 70, top=100, floor=90))
    assert node.reads(session)[1:] == [reset("lost", 50), 60, 70]


def test_a_time_asks_for_what_is_held_from_then_on_and_misses_nothing(node: Node) -> None:
    session = node.join("topic:a", since=50, quiet=True)
    node.answers(page(50, 60, top=100, shown=False, floor=55))
    assert node.reads(session) == [welcome(opened("topic:a", 59)), 60]
    late = node.join("topic:a", since=80, quiet=True)
    node.answers(page(80, top=100, shown=False))
    assert node.reads(late) == [welcome(opened("topic:a", 100))]


def test_what_left_after_it_was_promised_to_a_time_is_told() -> None:
    node = Node(outbox_bytes=3 * SIZE)
    session = node.session()
    node.hub.join(session, "topic:a", P, 50, quiet=True)
    node.hub.join(session, "far:b", Q, 50)
    node.hub.welcome(session)
    big = range(60, 70)  # more than may be held until the session opens: read again then
    node.answers(page(50, *big, top=100, shown=False))
    node.answers(page(50, top=100, name="far:b"), "far:b")
    assert session.reached()["topic:a"] == 59, "no less than the welcome says"
    node.answers(page(59, 70, top=100, shown=False))
    assert node.reads(session)[1:] == [reset("trimmed", 59), 70]


def test_a_position_above_the_watermark_is_kept_and_passed_nothing_at_or_below(node: Node) -> None:
    session = node.join("topic:a", since=105)
    node.answers(page(105, top=107))
    assert node.reads(session) == [welcome(opened("topic:a", 105, True))]
    assert session.reached() == {"topic:a": 107}
    node.says(103, 107)
    assert node.reads(session) == []
    node.says(108)
    assert node.reads(session) == [108]


def test_a_snapshot_brings_its_own_position(node: Node) -> None:
    values = [message(90, "tab:a", "x"), message(104, "tab:a", "y")]
    session = node.join("tab:a", snapshot=Snapshot(values, 104))
    assert session.queued > 2 * len(values[0].json), "it is counted for what it is"
    [told] = node.reads(session)
    [entry] = told["channels"]
    assert (entry["offset"], [bytes(value) for value in entry["snapshot"]]) == (104, [m.json for m in values])
    node.says(104, 105, channel="tab:a")
    assert node.reads(session) == [105]


def test_without_a_welcome_frame_it_is_left_with_the_session(node: Node) -> None:
    session = node.session(welcome=False)
    node.hub.join(session, "topic:a", P, 50)
    node.hub.welcome(session)
    assert session.opening is not None
    node.answers(page(50, 60, top=100, shown=False))
    assert session.entries == {"topic:a": opened("topic:a", 50, False)}
    assert node.reads(session) == [reset("trimmed", 50), 60]


def test_the_welcome_waits_for_every_channel(node: Node) -> None:
    session = node.session()
    for name in ("topic:a", "topic:b", "far:c"):
        node.hub.join(session, name, partition(name), 50)
    node.hub.welcome(session)
    node.answers(page(50, 60, top=100))
    node.says(110)
    node.answers(page(50, top=100, name="far:c"), "far:c")
    assert node.reads(session) == []
    node.answers(page(50, 70, top=100, name="topic:b"), "topic:b")
    names = [entry["channel"] for entry in node.reads(session)[0]["channels"]]
    assert names == ["topic:a", "far:c", "topic:b"]


def test_a_client_that_came_back_is_told_how_far_it_is(node: Node) -> None:
    session = node.join("topic:a", since=50)
    node.answers(page(50, 60, top=100))
    items = session.take()
    assert isinstance(items[-1], Control)
    assert decode_cursor(items[-1].body["cursor"], 1000) == {"topic:a": 100}


def test_one_that_missed_nothing_is_told_the_newer_position_by_its_welcome_alone(node: Node) -> None:
    node.join("topic:b")
    node.says(101, channel="topic:b")  # of the same partition
    session = node.join("topic:a", since=100)
    assert len(session.outbox) == 1  # no ping that says it once more
    assert node.reads(session) == [welcome(opened("topic:a", 101, True))]
    node.says(102)
    assert node.reads(session) == [102]


def test_one_that_missed_a_recent_message_is_sent_it(node: Node) -> None:
    node.join("topic:a")
    node.says(101)
    session = node.join("topic:a", since=100)
    first, second, *_ = node.reads(session)
    assert (first, second) == (welcome(opened("topic:a", 100, True)), 101)


# ---------------------------------------------------------------- subscribing while open


def test_one_more_channel_is_answered_by_subscribed(node: Node) -> None:
    session = node.join("topic:a")
    node.reads(session)
    node.hub.join(session, "topic:b", P, 50, request=7)
    node.hub.welcome(session)
    node.answers(page(50, 60, top=100, name="topic:b"), "topic:b")
    answer = {"type": "subscribed", "id": 7, "channel": "topic:b", "offset": 50, "recovered": True}
    assert node.reads(session) == [answer, 60]


def test_a_subscription_is_answered_also_when_the_node_catches_up_before_the_store_answers(node: Node) -> None:
    session = node.join("topic:a")
    node.reads(session)
    node.hub.join(session, "topic:b", P, 105, request=7)
    node.hub.welcome(session)
    node.says(110, channel="topic:b")
    node.hub.pump(session)
    answer = {"type": "subscribed", "id": 7, "channel": "topic:b", "offset": 105, "recovered": True}
    assert node.reads(session) == [answer, 110]
    node.answers(page(105, 110, top=110, name="topic:b"), "topic:b")
    assert node.reads(session) == []


def test_who_unsubscribed_gets_nothing_more(node: Node) -> None:
    session = node.join("topic:a", "topic:b")
    node.reads(session)
    node.hub.unsubscribe(session, "topic:a")
    node.says(101)
    node.says(102, channel="topic:b")
    assert node.reads(session) == [102]


def test_a_page_for_a_subscription_that_ended_is_dropped(node: Node) -> None:
    session = node.join("topic:a", "topic:b")
    node.reads(session)
    node.hub.join(session, "far:c", Q, 50)
    node.hub.pump(session)
    node.hub.unsubscribe(session, "far:c")
    node.answers(page(50, 60, top=100, name="far:c"), "far:c")
    assert node.reads(session) == []
    assert session.undecided == 0
