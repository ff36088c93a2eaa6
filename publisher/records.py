"""From a Kafka record to a message: what its value means, and the id that makes its repeats harmless; no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import msgspec

from publisher.errors import InvalidMessage
from publisher.message import Entry, Message, prepare


class Record(Protocol):
    """What is used of a record, as aiokafka has it."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # milliseconds since 1970; -1 where there is none
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class _Value(msgspec.Struct, forbid_unknown_fields=True):
    """A publish with one target: one record has one answer, and one place where it can be looked up."""

    channel: str | None = None
    user: str | None = None
    event: str = "message"
    data: msgspec.Raw = msgspec.Raw(b"null")
    key: str | None = None
    version: list[int] | None = None
    deleted: bool = False
    ttl: float | None = None
    id: str | None = None


_decode = msgspec.json.Decoder(_Value).decode


class Prepared(msgspec.Struct, frozen=True):
    """A record that can be sent: its channel, and the message itself."""

    channel: str
    entry: Entry


def message_id(record: Record) -> str:
    """The record's place and time: a topic that was deleted and made again hands its offsets out anew."""
    topic = record.topic
    if len(topic) > 100:
        topic = "sha256:" + hashlib.sha256(topic.encode()).hexdigest()
    return f"kafka:{topic}:{record.partition}:{record.offset}:{record.timestamp}"


def prepared(record: Record, channel: str | None, event: str) -> Prepared:
    """What to send for a record. Raises InvalidMessage.

    Without `channel` its value is a publish with one target, as /v1/publish takes it. Else the value is the data, null
    where there is none; `{key}` and `{topic}` in `channel` stand for the record's own, and its header `event` beats
    `event`.
    """
    id = message_id(record)
    if channel is not None:
        channel = channel.replace("{topic}", record.topic)
        if "{key}" in channel:  # last: a key is no template
            channel = channel.replace("{key}", _text(record.key, "key"))
        headers = dict(record.headers)
        message = Message(
            channel=channel, id=id, data=msgspec.Raw(record.value or b"null"),
            event=_text(headers["event"], "header event") if "event" in headers else event,
        )  # fmt: skip
    else:
        try:
            value = _decode(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidMessage(f"the value is no publish with one target: {error}") from error
        target = f"user:{value.user}" if value.user is not None and value.channel is None else value.channel
        if target is None or (value.user is not None and value.channel is not None):
            raise InvalidMessage("the value names no target: give channel or user")
        message = Message(
            channel=target, event=value.event, data=value.data, key=value.key, version=value.version,
            deleted=value.deleted, ttl=value.ttl, id=value.id or id,
        )  # fmt: skip
    return Prepared(str(message.channel), prepare(message))


def _text(raw: bytes | None, what: str) -> str:
    if not raw:
        raise InvalidMessage(f"the record has no {what}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"the record's {what} is not UTF-8") from error
