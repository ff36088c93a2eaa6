from __future__ import annotations

from gateway.message import Control, Message
from gateway.session import Budget, Calls, Item, Session
from gateway.transports.poll import take


def message(channel: str, offset: int) -> Message:
    return Message(channel, offset, f"m{offset}", "e", b"1", 0)


def test_a_reset_waits_for_the_answer_after_that_of_the_messages_before_it() -> None:
    """Whose client knows no order of the two, and would take the messages for older ones."""
    session = Session("s", Budget(1 << 20), 1 << 20, 100, Calls(lambda: None))
    early = Control("reset", "topic:b", position=1, reason="lost", offset=1)
    late = Control("reset", "topic:a", position=6, reason="lost", offset=6)
    first: list[Item] = [message("topic:a", 5), early, message("topic:b", 7), message("topic:a", 6)]
    second: list[Item] = [late, message("topic:a", 9)]
    for item in first + second:
        session.offer(item)
    assert take(session) == first
    assert take(session) == second
    assert take(session) == []
