"""What a Kafka record says to publish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from publisher.errors import InvalidMessage
from publisher.records import message_id, prepared


@dataclass
class Record:
    value: bytes | None
    key: bytes | None = b"ann"
    headers: Sequence[tuple[str, bytes]] = ()
    topic: str = "orders"
    partition: int = 3
    offset: int = 7
    timestamp: int = 1_700_000_000_123


def body(record: Record, channel: str | None = None, event: str = "message") -> dict[str, Any]:
    found = prepared(record, channel, event)
    told: dict[str, Any] = json.loads(found.entry.body)
    assert told["channel"] == found.channel
    assert told["id"] == found.entry.id
    return told


def test_a_value_is_a_publish_with_one_target() -> None:
    given = {"channel": "room:1", "event": "seat", "data": {"n": 1}, "key": "k", "version": [1], "ttl": 60, "id": "i"}
    assert body(Record(json.dumps(given).encode())) == given
    assert body(Record(b'{"user": "ann", "data": 1}')) == {
        "channel": "user:ann", "data": 1, "id": "kafka:orders:3:7:1700000000123",
    }  # fmt: skip


@pytest.mark.parametrize("value", [
    None, b"", b"{", b"1", b"{}", b'{"data": 1}', b'{"channel": "topic:a", "user": "b", "data": 1}',
    b'{"channels": ["topic:a"], "data": 1}', b'{"channel": "nowhere", "data": 1}', b"\xff",
    b'{"channel": "topic:a", "data": 1, "more": 2}', b'{"channel": "topic:a", "data": NaN}', b"[" * 100_000,
])  # fmt: skip
def test_any_other_value_is_refused(value: bytes | None) -> None:
    with pytest.raises(InvalidMessage):
        prepared(Record(value), None, "message")


def test_with_a_channel_the_value_is_the_data() -> None:
    assert body(Record(b'{"n": 1.10}'), "user:{key}", "order") == {
        "channel": "user:ann", "event": "order", "data": {"n": 1.1}, "id": "kafka:orders:3:7:1700000000123",
    }  # fmt: skip
    assert body(Record(None), "topic:{topic}")["data"] is None
    assert body(Record(b"1", headers=[("event", b"paid")]), "topic:{topic}", "order")["event"] == "paid"
    assert body(Record(b"1", key="zoë".encode()), "user:{key}")["channel"] == "user:zoë"
    assert body(Record(b"1", key=b"{topic}"), "user:{key}")["channel"] == "user:{topic}", "a key is no template"


@pytest.mark.parametrize(("record", "channel"), [
    (Record(b"1", key=None), "user:{key}"), (Record(b"1", key=b"\xff"), "user:{key}"), (Record(b"{"), "topic:a"),
    (Record(b"1", key=b"a b"), "user:{key}"), (Record(b"1", headers=[("event", b"error")]), "topic:a"),
])  # fmt: skip
def test_what_makes_no_message_is_refused(record: Record, channel: str) -> None:
    with pytest.raises(InvalidMessage):
        prepared(record, channel, "message")


def test_the_id_is_the_record_s_place_and_time() -> None:
    records = [Record(b"1"), Record(b"1", offset=8), Record(b"1", partition=4), Record(b"1", timestamp=1),
               Record(b"1", topic="x" * 249), Record(b"1", topic="x" * 248 + "y")]  # fmt: skip
    ids = [message_id(record) for record in records]
    assert len(set(ids)) == len(ids)
    assert max(map(len, ids)) <= 200
    assert message_id(Record(b"2")) == ids[0]
