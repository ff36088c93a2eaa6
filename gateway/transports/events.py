"""What an event stream (WHATWG HTML, 9.2) holds, whatever carries it: frames as events, positions in checkpoints."""

from __future__ import annotations

import random
from typing import Protocol

from gateway.errors import Problem, reconnects
from gateway.message import Control, Message, encode_cursor
from gateway.session import Item, Session

CHECKPOINT = 1.0  # seconds between two checkpoints of a busy stream
RETRY = 1000  # milliseconds an EventSource waits before it comes back
HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
BEGIN = b"retry: %d\n\n" % RETRY


class Stream(Protocol):
    """What is kept of a stream's checkpoints."""

    told_at: float  # when the last one went out, in seconds of the loop
    untold: bool  # whether the position has moved since


def checkpoint_at(stream: Stream, session: Session) -> float | None:
    """When a checkpoint is due though nothing is to be written."""
    return stream.told_at + CHECKPOINT if stream.untold and session.opening is None else None


def chunk(stream: Stream, session: Session, items: list[Item], now: float) -> bytes:
    """The events of what was taken, and a checkpoint where one is due, as before the end."""
    parts = [item.sse for item in items]
    due = session.closing is not None
    for item in items:
        if isinstance(item, Message):
            stream.untold = True
        elif item.kind != "ping" or "cursor" in item.body:
            stream.untold = due = True  # positions were told: say so in the one way an EventSource keeps
            if item.kind == "goodbye":
                # An EventSource reads no goodbye. Those that leave one after another are spread already.
                most = RETRY if item.body["after_ms"] else 2 * RETRY
                parts.append(b"retry: %d\n\n" % random.randint(0, most))  # noqa: S311 - spreads, hides nothing
    if stream.untold and session.opening is None and (due or now >= stream.told_at + CHECKPOINT):
        stream.told_at, stream.untold = now, False
        parts.append(b"id: %b\n\n" % encode_cursor(session.positions()).encode())
    return b"".join(parts)


def turned_away(problem: Problem) -> bytes:
    """The whole stream of a client that is to come back later: at a refusal an EventSource would stop for good."""
    wait = round((problem.retry_after or 1) * 1000)
    code = problem.kind.close
    goodbye = Control("goodbye", code=code, reconnect=reconnects(code), after_ms=wait, hint=problem.detail)
    return b"retry: %d\n\n%b" % (wait, goodbye.sse)
