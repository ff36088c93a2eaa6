"""`gateway.transports.native`: what many connections are owed alike is put together once."""

from __future__ import annotations

from operator import attrgetter

from gateway.message import Control, Message
from gateway.session import Item
from gateway.transports.native import Joined

FRAME, SSE_FRAME = attrgetter("frame"), attrgetter("sse_frame")


def message(offset: int) -> Message:
    made = Message("topic:a", offset, f"m{offset}", "e", b"1", 0)
    made.frame, made.sse_frame = b"<%d>" % offset, b"event %d\n\n" % offset
    return made


def test_messages_are_joined_once_for_all_who_wait_for_the_same() -> None:
    shared, items = Joined(), [message(1), message(2)]
    joined = shared.of(FRAME, [*items])
    assert joined == b"<1><2>"
    assert shared.of(FRAME, [*items]) is joined
    assert shared.of(FRAME, [items[0]]) == b"<1>"
    assert shared.of(FRAME, [*items, message(3)]) == b"<1><2><3>"


def test_each_transport_has_its_own() -> None:
    shared, items = Joined(), [message(1), message(2)]
    assert shared.of(FRAME, [*items]) == b"<1><2>"
    assert shared.of(SSE_FRAME, [*items]) == b"event 1\n\nevent 2\n\n"
    assert shared.of(FRAME, [*items]) == b"<1><2>"


def test_what_is_not_messages_alone_that_were_written_before_is_left_to_each_connection() -> None:
    new = message(2)
    new.frame = None
    others: list[list[Item]] = [[], [message(1), Control("ping")], [message(1), new]]
    for items in others:
        assert Joined().of(FRAME, items) is None
