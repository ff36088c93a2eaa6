"""What is stored and announced: one line of JSON about the message, then the publisher's own bytes.

Both carry the number of their format. A later one only adds fields at the end, which earlier releases skip.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

import msgspec

from gateway.brokers.base import Unreadable
from gateway.message import Draft, Message, new_id

FORMAT = 1


class Untraced(msgspec.Struct, array_like=True, frozen=True):
    """What is written of a message without a trace, as by the first release."""

    format: int
    history: str  # the last take-over its publisher knew of
    channel: str
    event: str
    id: str
    time: int  # milliseconds since 1970
    digest: str = ""  # tells another body under the same id
    key: str | None = None
    version: tuple[int, ...] | None = None
    deleted: bool = False
    ttl: int | None = None  # milliseconds, of a key's value


class Meta(Untraced, array_like=True, frozen=True):
    trace: str | None = None  # a `traceparent`

    def message(self, offset: int, data: bytes) -> Message:
        return Message(
            self.channel, offset, self.id, self.event, data, self.time, self.key, self.version, self.deleted,
            self.trace,
        )  # fmt: skip


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Meta).decode


def encode(draft: Draft, history: str, time: int, ttl: int | None) -> bytes:
    fields = (
        FORMAT, history, draft.channel, draft.event, draft.id, time, draft.digest().hex() if draft.idempotent else "",
        draft.key, draft.version, draft.deleted, ttl,
    )  # fmt: skip
    meta = Untraced(*fields) if draft.trace is None else Meta(*fields, draft.trace)
    return _encode(meta) + b"\n" + draft.data


def decode(payload: bytes) -> tuple[Meta, bytes]:
    """The message's line, read, and its data. Raises Unreadable."""
    line, newline, data = payload.partition(b"\n")
    try:
        found = _decode(line) if newline else None
    except msgspec.DecodeError:
        found = None
    if found is None or found.format != FORMAT:
        raise Unreadable(f"not a message of format {FORMAT}: {line[:40].decode('latin-1')!r}")
    return found, data


def message_id(draft: Draft) -> str:
    """The id under which a stream recognises a repeat: scoped by principal and channel, and of one length.

    Call it once for a publish: one without an idempotency key gets another each time, for its own attempts alone.
    """
    if not draft.idempotent:
        return new_id()
    return hashlib.sha256("\0".join((draft.principal, draft.channel, draft.id)).encode()).hexdigest()[:32]


def milliseconds(time: str) -> int:
    """RFC 3339, as the server stamps its messages."""
    return int(datetime.fromisoformat(time).timestamp() * 1000)
