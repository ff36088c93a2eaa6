"""`gateway.transports.native`: what many connections are owed alike is put together once."""

from __future__ import annotations

from gateway.message import Control, Message
from gateway.session import Item
from gateway.transports.native import Joined


def message(offset: int) -> Message:
    return Message("topic:a", offset, f"m{offset}", "e", b"1", 0)


def framed(item: Item) -> bytes | None:
    return b"<%d>" % item.offset if isinstance(item, Message) else None


def event(item: Item) -> bytes | None:
    return b"event %d\n\n" % item.offset if isinstance(item, Message) else None


def test_messages_are_joined_once_for_all_who_wait_for_the_same() -> None:
    shared, items = Joined(), [message(1), message(2)]
    joined = shared.of(framed, [*items])
    assert joined == b"<1><2>"
    assert shared.of(framed, [*items]) is joined
    assert shared.of(framed, [items[0]]) == b"<1>"
    assert shared.of(framed, [*items, message(3)]) == b"<1><2><3>"


def test_each_transport_has_its_own() -> None:
    shared, items = Joined(), [message(1), message(2)]
    assert shared.of(framed, [*items]) == b"<1><2>"
    assert shared.of(event, [*items]) == b"event 1\n\nevent 2\n\n"
    assert shared.of(framed, [*items]) == b"<1><2>"


def test_what_is_no_message_is_left_to_each_connection() -> None:
    others: list[list[Item]] = [[], [Control("ping")], [message(1), Control("ping")]]
    for items in others:
        assert Joined().of(framed, items) is None
