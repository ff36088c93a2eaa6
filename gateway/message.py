"""Messages, their channels and the cursor that resumes them: the words of the wire, with no I/O."""

from __future__ import annotations

import binascii
import hashlib
import random
import re
import string
import time as clock
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar

import msgspec

MAX_OFFSET = 2**53 - 1  # what a JavaScript number holds exactly
MAX_NAME = 200  # characters of a channel after its namespace
RESERVED = ("jobs", "presence", "ringcast")  # namespaces that only the gateway itself publishes to
VERBS = "ringcast:user."  # and a user: what is done to all sessions of that user
PRESENCE_TABLE = "ringcast:presence."  # and a partition: the table that lies in it, whatever its name would hash to

_NAMESPACE = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
_PLAIN = re.compile(rf"(?!presence:)[a-z][a-z0-9_-]{{0,62}}:[!-)+\--~]{{1,{MAX_NAME}}}\Z")  # told at once
_TO_URL, _FROM_URL = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")
_encode = msgspec.json.Encoder().encode
_decode_cursor = msgspec.json.Decoder(dict[str, int]).decode


def check_channel(channel: str) -> str:
    """Return `channel` when it is well formed.

    A channel is a namespace `[a-z][a-z0-9_-]*`, a colon, then 1 to 200 printable Unicode characters other than space,
    comma and `*`; after `presence:` comes the channel whose members it tells. Raises ValueError with a sentence that
    names the fault.
    """
    if _PLAIN.match(channel):
        return channel
    namespace, colon, name = channel.partition(":")
    if namespace == "presence" and name.partition(":")[0] not in RESERVED:
        check_channel(name)  # as long a name as it may be
        return channel
    if not colon or not _NAMESPACE.match(namespace):
        raise ValueError(f"channel {clip(channel)} must begin with a namespace such as 'user:' or 'topic:'")
    if not 1 <= len(name) <= MAX_NAME:
        raise ValueError(f"channel {clip(channel)} must have 1 to {MAX_NAME} characters after '{namespace}:'")
    if not name.isprintable() or " " in name or "," in name or "*" in name:
        raise ValueError(f"channel {clip(channel)} holds a space, a comma, a '*' or a character that is not printable")
    return channel


def check_event(event: str) -> str:
    """Return `event` when every transport can carry it; raise ValueError with a sentence that says why not.

    An SSE field holds no line break, EventSource keeps `open` and `error` for itself, and `ringcast.` is ours.
    """
    if not 1 <= len(event) <= MAX_NAME:
        raise ValueError(f"event must have 1 to {MAX_NAME} characters")
    if any(c < " " or "\x7f" <= c <= "\x9f" for c in event) or not _is_text(event):
        raise ValueError("event must not hold control characters or lone surrogates")
    if event in ("open", "error") or event.startswith("ringcast."):
        raise ValueError(f"event {clip(event)} is reserved, as are 'open', 'error' and all of 'ringcast.*'")
    return event


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clip(text: str, limit: int = 60) -> str:
    """`text` as an error message may show it: quoted, escaped, cut."""
    return ascii(text if len(text) <= limit else text[: limit - 1] + "…")


def plain(text: str) -> str:
    """`text` without what a terminal would take for a command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def namespace(channel: str) -> str:
    return channel[: channel.index(":")]


def routing_key(channel: str) -> str:
    """What places a channel: a user's own channels share the user's key, presence the key of what it watches."""
    space, _, name = channel.partition(":")
    if space in ("user", "jobs"):
        return name
    if space == "ringcast" and name.startswith("user."):
        return name[len("user.") :]
    if space == "presence":
        return routing_key(name)
    return channel


def partition_of(channel: str, partitions: int) -> int:
    """The partition of a channel: the first 8 bytes, big-endian, of SHA-256 of its routing key, mod `partitions`.

    A table of presence names its partition itself.
    """
    if channel.startswith(PRESENCE_TABLE):
        number = channel[len(PRESENCE_TABLE) :]
        if number.isascii() and number.isdecimal():
            return int(number) % partitions
    return _hashed(routing_key(channel)) % partitions


@lru_cache(maxsize=1024)
def _hashed(key: str) -> int:
    """Of a user who connects, by the names of three channels."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def base64url(raw: bytes) -> bytes:
    """Unpadded base64url (RFC 4648, 5), without the four calls of the module base64."""
    return binascii.b2a_base64(raw, newline=False).translate(_TO_URL, b"=")


def from_base64url(text: bytes, *, strict: bool = True) -> bytes:
    """What `text` stands for, padded or not. Raises binascii.Error; characters of no base64 where `strict`."""
    return binascii.a2b_base64(text.translate(_FROM_URL) + b"=" * (-len(text) % 4), strict_mode=strict)


def encode_cursor(positions: dict[str, int]) -> str:
    """Positions by channel as the opaque string of the wire: unpadded base64url of a JSON object."""
    return base64url(_encode(positions)).decode()


def decode_cursor(cursor: str, limit: int) -> dict[str, int]:
    """The positions of a cursor of at most `limit` bytes; raises ValueError with a sentence when it is malformed."""
    if len(cursor) > limit:
        raise ValueError(f"the cursor has {len(cursor)} bytes and only {limit} fit here: send it by POST")
    try:
        positions = _decode_cursor(from_base64url(cursor.encode("ascii")))
    except (UnicodeError, binascii.Error, msgspec.DecodeError) as error:  # msgspec lets UnicodeDecodeError through
        raise ValueError("the cursor is not base64url of a JSON object of offsets by channel") from error
    return check_positions(positions)


def check_positions(positions: dict[str, int]) -> dict[str, int]:
    for channel, offset in positions.items():
        check_channel(channel)
        if not 0 <= offset <= MAX_OFFSET:
            raise ValueError(f"the cursor's offset of {clip(channel)} is not between 0 and 2^53 - 1")
    return positions


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [high + low for high in _CROCKFORD for low in _CROCKFORD]
_BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
_TO_CROCKFORD = bytes.maketrans(_BASE64.encode(), 2 * _CROCKFORD.encode())
_random = random.getrandbits  # ids are unique, not secret; a process that was forked is seeded anew


def new_id() -> str:
    """A ULID: 48 bits of milliseconds and 80 random bits in Crockford's base 32, 26 characters."""
    drawn = binascii.b2a_base64(_random(96).to_bytes(12), newline=False)  # 16 characters, of which 5 bits each are used
    milliseconds = int(clock.time() * 1000)
    return _second_of_id(milliseconds >> 10) + _PAIRS[milliseconds & 1023] + drawn.translate(_TO_CROCKFORD).decode()


@lru_cache(maxsize=1)
def _second_of_id(time: int) -> str:
    """The first 8 characters, which are the same for 1,024 milliseconds."""
    return "".join([_PAIRS[time >> shift & 1023] for shift in range(30, -1, -10)])


class Draft(msgspec.Struct):
    """What a publisher asks for, checked, before a store has given it an offset.

    `data` is strict JSON on one line, as it will be passed on. `principal` scopes `id` when `idempotent`: a repeat of
    the same id with the same `digest` returns the first receipt, with another it is refused.
    """

    channel: str
    event: str
    data: bytes
    id: str
    key: str | None = None
    version: tuple[int, ...] | None = None
    deleted: bool = False
    ttl: float | None = None  # seconds
    principal: str = ""
    idempotent: bool = False
    trace: str | None = None  # a `traceparent`

    def digest(self) -> bytes:
        """Tells one body from another under the same id."""
        parts = (self.event, self.key, self.version, self.deleted, self.ttl)
        return hashlib.sha256(_encode(parts) + self.data).digest()[:16]


class Message(msgspec.Struct, eq=False, gc=False):
    """One entry of a channel's log. Immutable; each transport's frame is made once, when first wanted."""

    channel: str
    offset: int
    id: str
    event: str
    data: bytes
    time: int  # milliseconds since 1970
    key: str | None = None
    version: tuple[int, ...] | None = None
    deleted: bool = False
    trace: str | None = None  # the span it was stored in, as a `traceparent`; no client is told of it
    size: int = 0  # bytes it counts as in every bound: its data, and a flat charge for the rest and its frames' headers
    frame: bytes | None = None  # of a WebSocket, which is made where those are
    sse_frame: bytes | None = None
    _json: bytes | None = None
    _text: str | None = None

    def __post_init__(self) -> None:
        self.size = 2 * len(self.data) + 512

    @property
    def json(self) -> bytes:
        """The message object of the wire, as UTF-8 JSON around the publisher's own bytes."""
        if self._json is None:
            time, data = format_time(self.time), msgspec.Raw(self.data)
            self._json = _encode(
                _Wire(self.channel, self.offset, self.id, self.event, data, time, self.key, self.version, self.deleted)
            )
        return self._json

    @property
    def text(self) -> str:
        """`json` as the string that an ASGI server wants in a WebSocket text frame."""
        if self._text is None:
            self._text = self.json.decode()
        return self._text

    @property
    def sse(self) -> bytes:
        """The message as one server-sent event (WHATWG HTML, 9.2.6); its position travels in checkpoints, not here."""
        if self.sse_frame is None:
            self.sse_frame = b"event: %b\ndata: %b\n\n" % (self.event.encode(), self.json)
        return self.sse_frame

    def __repr__(self) -> str:
        return f"<Message {self.channel} {self.offset} {self.event}>"


class _Wire(msgspec.Struct, tag_field="type", tag="message", omit_defaults=True):
    """A message as clients are sent it."""

    channel: str
    offset: int
    id: str
    event: str
    data: msgspec.Raw
    time: str
    key: str | None = None
    version: tuple[int, ...] | None = None
    deleted: bool = False


class Control:
    """A frame about a session or one of its channels: welcome, subscribed, reset, ping, goodbye ..."""

    __slots__ = ("body", "channel", "kind", "position", "recallable", "size")
    frame: ClassVar[bytes | None] = None  # each is one session's own, and none is kept
    sse_frame: ClassVar[bytes | None] = None

    def __init__(
        self, kind: str, channel: str | None = None,
        *, recallable: bool = False, position: int | None = None, weight: int = 0, **body: Any,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.channel = channel
        self.size = 512 + weight  # bytes it is counted with in every bound: of its snapshots, and a flat charge
        self.position = position  # what a cursor says of the channel that is written before this is
        self.recallable = recallable  # dropped with the messages before it, when those are taken back from an outbox
        self.body: dict[str, Any] = {"type": kind}
        if channel is not None:
            self.body["channel"] = channel
        for name, value in body.items():
            if value is not None:
                self.body[name] = value

    @property
    def json(self) -> bytes:
        return _encode(self.body)

    @property
    def text(self) -> str:
        return self.json.decode()

    @property
    def sse(self) -> bytes:
        return b"event: ringcast.%b\ndata: %b\n\n" % (self.kind.encode(), self.json)

    def __repr__(self) -> str:
        return f"<Control {self.body}>"


class Heartbeat(Control):
    """The ping that comes every heartbeat; with a cursor where one of the session's channels needs to be told of."""

    __slots__ = ()

    def __init__(self, cursor: str | None = None) -> None:
        super().__init__("ping", recallable=True, cursor=cursor)


BEAT = Heartbeat()  # as nearly all are: one for everybody


def format_time(milliseconds: int) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-11-20T12:00:00.123Z`."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    """Most messages are of the second that the last one was of."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
