from __future__ import annotations

import pytest

from gateway.message import Control, Message
from gateway.recent import Channel, Partition
from gateway.session import Behind, Budget, Calls, Item, Session

SIZE = 512 + 2 * 100  # what a message here counts


class Woken:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def message(offset: int, channel: str = "topic:a") -> Message:
    return Message(channel, offset, f"m{offset}", "e", b"x" * 100, 0)


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def session(woken: Woken) -> Session:
    """A session with room for three messages, which follows topic:a and topic:b behind position 100."""
    session = Session("s", Budget(1 << 20), 3 * SIZE, 10, Calls(woken))
    partition = Partition(0, 100)
    for name in ("topic:a", "topic:b"):
        session.channels[name] = channel = Channel(name, partition)
        session.fall_behind(channel, Behind(100, proved=True))
    return session


def follow_live(session: Session, name: str, top: int) -> None:
    channel = session.channels[name]
    session.caught_up(channel)
    channel.partition.top = top
    channel.live[session] = 0


# ---------------------------------------------------------------- outbox


def test_what_is_offered_is_taken_in_order_and_counted_until_sent(session: Session) -> None:
    items: list[Item] = [message(101), Control("ping"), message(102)]
    assert all(session.offer(item) for item in items)
    assert (session.queued, session.flying, session.budget.used) == (2 * SIZE + 512, 0, 2 * SIZE + 512)
    assert session.take() == items
    assert (session.queued, session.flying, session.budget.used) == (0, 2 * SIZE + 512, 2 * SIZE + 512)
    session.sent()
    assert (session.flying, session.budget.used) == (0, 0)


def test_what_many_are_offered_at_once_is_not_changed_by_what_one_of_them_is_offered_later(session: Session) -> None:
    other = Session("o", session.budget, 3 * SIZE, 10, Calls(Woken()))
    first = message(101)
    alone: list[Item] = [first]
    assert session.offer(first, alone)
    assert other.offer(first, alone)
    assert session.outbox is other.outbox
    later = message(102)
    assert session.offer(later)
    assert (session.outbox, other.outbox, alone) == ([first, later], [first], [first])


def test_what_has_passed_is_counted_no_longer(session: Session) -> None:
    session.offer(message(101))
    session.offer(message(102))
    session.passed()
    assert (session.take(), session.queued, session.flying, session.budget.used) == ([], 0, 0, 0)


def test_it_is_woken_when_there_is_something_again(session: Session, woken: Woken) -> None:
    session.offer(message(101))
    session.offer(message(102))
    assert woken.times == 1
    session.take()
    session.offer(message(103))
    assert woken.times == 2


def test_a_full_outbox_refuses_messages_only(session: Session) -> None:
    assert all(session.offer(message(offset)) for offset in (101, 102, 103))
    assert not session.offer(message(104))
    assert session.offer(Control("ping"))
    assert session.budget.used == 3 * SIZE + 512


def test_items_are_bounded_as_well_as_bytes(session: Session) -> None:
    session._limit = 1 << 20
    assert [session.offer(message(offset)) for offset in range(101, 112)] == [True] * 10 + [False]


def test_an_outbox_without_a_message_takes_any(session: Session) -> None:
    """Or a reset could keep the message that follows it out for ever."""
    session._limit, session._items_limit = 100, 1
    assert session.offer(Control("reset", "topic:a", offset=100))
    assert session.offer(message(101))
    assert not session.offer(message(102))


def test_a_closing_session_takes_no_more_messages(session: Session) -> None:
    session.closing = 4100
    assert not session.offer(message(101))
    assert session.offer(Control("goodbye"))


def test_a_batch_has_one_item_at_least(session: Session) -> None:
    for offset in (101, 102, 103):
        session.offer(message(offset))
    assert [item.offset for item in session.take(1) if isinstance(item, Message)] == [101]
    assert [item.offset for item in session.take(2 * SIZE) if isinstance(item, Message)] == [102, 103]
    assert session.take(1) == []


def test_when_the_connection_is_gone_nothing_is_counted_any_more(session: Session) -> None:
    session.offer(message(101))
    session.take()
    session.offer(message(102))
    session.clear()
    session.sent()  # the transport notices later
    assert (session.queued, session.flying, session.budget.used, len(session.outbox)) == (0, 0, 0, 0)


def test_pages_held_before_the_welcome_are_counted_and_bounded(session: Session) -> None:
    assert session.hold(2 * SIZE)
    assert not session.hold(2 * SIZE)
    assert session.hold(SIZE)
    assert session.budget.used == 3 * SIZE


# ---------------------------------------------------------------- taking back


def test_recall_takes_messages_back_and_says_where_each_channel_began(session: Session) -> None:
    kept = Control("pong")
    session.offer(message(101))
    session.take()
    for item in (message(102, "topic:b"), message(103), Control("ping", recallable=True), kept):
        assert session.offer(item)
    session.sent()
    assert session.recall() == {"topic:b": 102, "topic:a": 103}
    assert session.take() == [kept]
    session.sent()
    assert session.budget.used == 0


def test_recall_forgets_what_an_earlier_subscription_was_owed(session: Session) -> None:
    for item in (message(101), Control("unsubscribed", "topic:a"), message(101, "topic:b")):
        session.offer(item)
    session.offer(Control("subscribed", "topic:b", offset=105))
    assert session.recall() == {}


def test_a_reset_behind_a_message_is_taken_back_with_it_and_told_again(session: Session) -> None:
    behind = session.behind[session.channels["topic:a"]]
    behind.told = 90
    session.offer(message(50))
    session.offer(Control("reset", "topic:a", offset=60))
    session.offer(message(95))
    assert session.recall() == {"topic:a": 50}
    assert behind.told == 0
    assert not session.outbox


def test_a_reset_of_a_subscription_that_ended_is_taken_back_too(session: Session) -> None:
    session.offer(message(50))
    session.offer(Control("reset", "topic:a", offset=60))
    session.offer(ended := Control("unsubscribed", "topic:a"))
    session.caught_up(session.channels.pop("topic:a"))
    assert session.recall() == {}
    assert list(session.outbox) == [ended]


def test_a_reset_with_nothing_before_it_stays(session: Session) -> None:
    session.offer(reset := Control("reset", "topic:a", offset=60))
    session.offer(message(95))
    assert session.recall() == {"topic:a": 95}
    assert list(session.outbox) == [reset]


def test_a_welcome_in_place_says_no_more_than_is_left_before_it(session: Session) -> None:
    session.offer(message(101))
    session.offer(message(103))
    entries = [{"channel": "topic:a", "offset": 103}, {"channel": "topic:b", "offset": 100}]
    session.offer(welcome := Control("welcome", channels=entries))
    session.recall()
    assert welcome.body["channels"] == [{"channel": "topic:a", "offset": 100}, {"channel": "topic:b", "offset": 100}]


# ---------------------------------------------------------------- positions


def test_it_has_reached_what_was_offered(session: Session) -> None:
    assert session.reached() == {"topic:a": 100, "topic:b": 100}
    follow_live(session, "topic:a", 250)
    assert session.reached() == {"topic:a": 250, "topic:b": 100}


def test_a_session_that_knows_more_than_its_node_keeps_its_position(session: Session) -> None:
    follow_live(session, "topic:a", 250)
    session.channels["topic:a"].live[session] = 300
    assert session.reached()["topic:a"] == 300


def test_a_cursor_beside_what_was_taken_stops_before_what_waits(session: Session) -> None:
    follow_live(session, "topic:a", 250)
    session.offer(message(201))
    session.offer(message(202))
    assert session.positions() == {"topic:a": 200, "topic:b": 100}
    session.take(SIZE)
    assert session.positions() == {"topic:a": 201, "topic:b": 100}
    session.take()
    assert session.positions() == {"topic:a": 250, "topic:b": 100}


@pytest.mark.parametrize("kind", ["reset", "subscribed"])
def test_a_cursor_before_a_reset_still_says_what_it_answers(session: Session, kind: str) -> None:
    """A client that never sees the reset comes back with this cursor, and is to be told once more."""
    session.behind[session.channels["topic:a"]].since = 60
    session.offer(Control(kind, "topic:a", position=77, offset=60))
    session.offer(message(90))
    assert session.positions()["topic:a"] == 77
    session.take(512)
    assert session.positions()["topic:a"] == 89
