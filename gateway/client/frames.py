"""The frames a gateway sends, typed; and the positions a subscriber has reached by them. No I/O."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from gateway.message import decode_cursor, encode_cursor

MAX_CURSOR = 1 << 20  # bytes; far above what a session of 1,000 channels needs
MEANWHILE = 10_000  # offsets of a channel remembered while a connection is opened; what is above may come twice


class Message(msgspec.Struct, frozen=True, dict=True, tag="message", tag_field="type"):
    """A published message. `raw` is its data as the publisher's own JSON bytes, `data` the same decoded."""

    channel: str
    offset: int
    id: str
    event: str
    raw: msgspec.Raw = msgspec.field(name="data")
    time: datetime
    key: str | None = None
    version: tuple[int, ...] | None = None
    deleted: bool = False

    @cached_property
    def data(self) -> Any:
        return msgspec.json.decode(self.raw)

    def __repr__(self) -> str:
        return f"<Message {self.channel} {self.offset} {self.event}>"


class Reset(msgspec.Struct, frozen=True, tag="reset", tag_field="type"):
    """Messages of this channel may be missing here; what follows lies above `offset`. Load the state anew.

    `reason` is `unknown` (a position that this store never issued), `lost` (the store lost messages) or `trimmed`
    (the position lies before what is kept).
    """

    channel: str
    reason: str
    offset: int


class Unsubscribed(msgspec.Struct, frozen=True, tag="unsubscribed", tag_field="type"):
    """Nothing more comes of this channel, because the token no longer permits it or somebody ended it."""

    channel: str
    reason: str | None = None


class Position(msgspec.Struct, frozen=True):
    channel: str
    offset: int
    recovered: bool = False


class Welcome(msgspec.Struct, frozen=True, tag="welcome", tag_field="type"):
    heartbeat_ms: int = 15_000
    node: str | None = None
    partition: int | None = None
    home: str | None = None
    channels: list[Position] = []


class Subscribed(msgspec.Struct, frozen=True, tag="subscribed", tag_field="type"):
    channel: str
    offset: int


class Ping(msgspec.Struct, frozen=True, tag="ping", tag_field="type"):
    cursor: str | None = None


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye", tag_field="type"):
    """The node is about to end this connection: go on receiving for `after_ms`, then come back."""

    code: int
    reconnect: bool = True
    after_ms: int | None = None
    cursor: str | None = None
    hint: str | None = None


class Error(msgspec.Struct, frozen=True, tag="error", tag_field="type"):
    code: str
    message: str = ""


class Checkpoint(msgspec.Struct, frozen=True):
    """A cursor by itself: an `id:` of SSE, or what a poll ends with."""

    cursor: str


class Answer(msgspec.Struct):
    """What a poll is answered with."""

    cursor: str
    messages: list[Message] = []
    resets: list[Reset] = []
    more: bool = False


class _Tagged(msgspec.Struct):
    type: str


Event = Message | Reset | Unsubscribed
Frame = Message | Reset | Unsubscribed | Welcome | Subscribed | Ping | Goodbye | Error | Checkpoint

_decoder: msgspec.json.Decoder[Frame] = msgspec.json.Decoder(
    Message | Reset | Unsubscribed | Welcome | Subscribed | Ping | Goodbye | Error
)
_decode_type = msgspec.json.Decoder(_Tagged).decode
_KNOWN = {"message", "reset", "unsubscribed", "welcome", "subscribed", "ping", "goodbye", "error"}


def decode_frame(data: bytes) -> Frame | None:
    """A frame; None for one of a type that this version does not know. Raises msgspec.DecodeError for anything else."""
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError:
        if _decode_type(data).type in _KNOWN:
            raise
        return None


class Positions:
    """What a subscriber has seen of each channel; tells what of the frames it is to see."""

    def __init__(self, cursor: str | None = None) -> None:
        """Raises ValueError for a malformed cursor."""
        self._offsets = decode_cursor(cursor, MAX_CURSOR) if cursor is not None else {}
        self._meanwhile: dict[str, set[int]] = {}  # by channel: what came while another connection was opened
        self._last: dict[str, int] = {}  # and the highest of them

    def __bool__(self) -> bool:
        return bool(self._offsets)

    @property
    def cursor(self) -> str:
        return encode_cursor(self._offsets)

    def take(self, frame: Frame, *, beside: bool = False) -> Event | None:
        """Move on by a frame; returns it when it is for the application, which sees no message twice.

        `beside` while another connection is opened beside the one that it came on. That one presents where we are now,
        and where it begins with a reset, it goes back to there: what has come meanwhile comes again.
        """
        if isinstance(frame, Message):
            if frame.offset <= self._offsets.get(frame.channel, -1):
                return None
            self._offsets[frame.channel] = frame.offset
            return None if self._came_meanwhile(frame.channel, frame.offset, beside) else frame
        if isinstance(frame, Reset):
            self._offsets[frame.channel] = frame.offset
            return frame
        if isinstance(frame, Unsubscribed):
            for known in (self._offsets, self._meanwhile, self._last):
                known.pop(frame.channel, None)
            return frame
        if isinstance(frame, Welcome):
            for at in frame.channels:
                # A connection that was opened beside another presented what that one has since moved on from.
                if not at.recovered or at.offset > self._offsets.get(at.channel, -1):
                    self._offsets[at.channel] = at.offset
        elif isinstance(frame, Subscribed):
            self._offsets[frame.channel] = frame.offset
        elif isinstance(frame, Checkpoint | Ping | Goodbye) and frame.cursor:
            # A cursor beside messages can only be ahead of them, where a channel was quiet.
            for channel, offset in decode_cursor(frame.cursor, MAX_CURSOR).items():
                self._offsets[channel] = max(offset, self._offsets.get(channel, 0))
        return None

    def _came_meanwhile(self, channel: str, offset: int, beside: bool) -> bool:
        seen = self._meanwhile.get(channel)
        again = seen is not None and offset in seen
        if beside:
            seen = self._meanwhile.setdefault(channel, set())
            if len(seen) < MEANWHILE:
                seen.add(offset)
                self._last[channel] = max(offset, self._last.get(channel, 0))
        elif seen is not None and offset >= self._last[channel]:
            del self._meanwhile[channel], self._last[channel]
        return again
