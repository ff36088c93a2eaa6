"""A message before it is sent, checked and encoded; and the receipt that comes back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from publisher.errors import InvalidMessage, PublishError

_CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,62}:[^ ,*]{1,200}\Z")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_encode = msgspec.json.Encoder().encode


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish, and to whom: exactly one of `channel`, `channels`, `user` and `users`.

    `data` is anything JSON holds, and what msgspec turns into it (dataclasses, datetimes, UUIDs ...); `msgspec.Raw`
    is JSON that is already encoded, and arrives as it is. NaN, infinities and lone surrogates are refused, because
    JSON has none. `key` (in namespaces that the gateway keeps as tables) names the value that this one replaces;
    `version`, up to five integers compared in order, must then be newer than the stored one, `deleted` removes the
    key and `ttl` (seconds) lets it expire. `id` is the message's id and makes a repeat within the gateway's window
    harmless; without one a ULID is made.
    """

    channel: str | None = None
    channels: Sequence[str] | None = None
    user: str | None = None
    users: Sequence[str] | None = None
    event: str = "message"
    data: Any = None
    key: str | None = None
    version: Sequence[int] | None = None
    deleted: bool = False
    ttl: float | None = None
    id: str | None = None


class Receipt(msgspec.Struct, frozen=True):
    """An acknowledgement: the message is stored at `offset` of `channel`.

    `duplicate` says that it was stored before, by an earlier publish with the same `id` or by a try of this one whose
    answer got lost.
    """

    channel: str
    offset: int
    id: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A message ready to be sent, as often as it takes."""

    id: str
    body: bytes  # one JSON object on one line
    single: bool  # one target, whose receipt stands alone


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one message of `publish_many`; `number` counts from 1, in the order they were given."""

    number: int
    receipts: list[Receipt]
    error: PublishError | None = None

    @property
    def receipt(self) -> Receipt:
        """The receipt of a message with one target. Raises its error where there is one."""
        if self.error is not None:
            raise self.error
        return self.receipts[0]


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Number = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class _Item(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """A message as the wire has it."""

    channel: str | None = None
    channels: list[str] | None = None
    user: str | None = None
    users: list[str] | None = None
    event: _Name = "message"
    key: _Name | None = None
    version: Annotated[list[_Number], msgspec.Meta(min_length=1, max_length=5)] | None = None
    deleted: bool = False
    ttl: Annotated[float, msgspec.Meta(gt=0, le=3650 * 86400)] | None = None
    id: _Name | None = None
    data: Any = None


def prepare(message: Message | Mapping[str, Any]) -> Entry:
    """Check and encode a message. Raises InvalidMessage with a sentence that names the fault."""
    try:
        item = msgspec.convert(message, _Item, from_attributes=True)
    except msgspec.ValidationError as error:
        raise InvalidMessage(f"not a message: {error}") from error
    for channel in _targets(item):
        if not _CHANNEL.match(channel) or not channel.isprintable():
            raise InvalidMessage(
                f"{channel[:60]!a} is not a channel: a namespace like 'user:' or 'topic:' and 1 to 200 printable"
                " characters other than space, comma and '*'"
            )
    for field in ("event", "key", "id"):
        _check_text(field, getattr(item, field))
    if item.event in ("open", "error") or item.event.startswith("ringcast."):
        raise InvalidMessage(f"event {item.event[:60]!a} is reserved, as are 'open', 'error' and all of 'ringcast.*'")
    if item.key is None and (item.version is not None or item.deleted or item.ttl is not None):
        raise InvalidMessage("version, deleted and ttl are about a key's value: give a key too")
    item.id = item.id or new_id()
    item.data = encoded(item.data)
    return Entry(item.id, _encode(item), item.channels is None and item.users is None)


def _targets(item: _Item) -> list[str]:
    kinds = ("channel", "channels", "user", "users")
    given = [name for name in kinds if getattr(item, name) is not None]
    if len(given) != 1:
        raise InvalidMessage("say where to publish: exactly one of channel, channels, user and users")
    targets = [item.channel] if item.channel is not None else item.channels
    if targets is None:
        targets = [f"user:{user}" for user in ([item.user] if item.user is not None else item.users or [])]
    if not targets:
        raise InvalidMessage(f"{given[0]} is empty: name at least one")
    return targets


def _check_text(field: str, text: str | None) -> None:
    if text is not None and any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in text):
        raise InvalidMessage(f"{field} must not hold control characters or lone surrogates")


def encoded(data: Any) -> msgspec.Raw:
    """`data` as strict JSON on one line. json, not msgspec, writes it: msgspec would turn NaN into null unasked."""
    try:
        if isinstance(data, msgspec.Raw):
            return msgspec.Raw(msgspec.json.format(bytes(data).decode().encode(), indent=-1))
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=msgspec.to_builtins)
        return msgspec.Raw(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"data is not JSON: {error}") from error


def partition(user: str, partitions: int = 1024) -> int:
    """The partition of a user, for the `p` of the first address that its client is given.

    `partitions` is the gateway's setting of that name, 64 by default on NATS. A wrong one costs bandwidth alone.
    """
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8]) % partitions


def new_id() -> str:
    """A ULID: 48 bits of milliseconds and 80 random bits in Crockford's base 32, 26 characters."""
    n = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    return "".join(_CROCKFORD[n >> shift & 31] for shift in range(125, -1, -5))
