"""What makes a message, and what does not; nothing here is sent."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import pickle
import uuid
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from publisher import InvalidMessage, Message, PublishError, Receipt, Refused, TargetsFailed, Unavailable, partition
from publisher.message import new_id, prepare


@dataclasses.dataclass
class Order:
    number: int
    price: float = 1.5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_json_is_written_on_one_line_and_reads_back_the_same(data: Any) -> None:
    entry = prepare({"channel": "topic:a", "data": data})
    assert b"\n" not in entry.body
    assert json.loads(entry.body)["data"] == data


def test_rich_values_are_written_as_msgspec_writes_them() -> None:
    data = {"order": Order(7), "at": datetime.date(2026, 1, 2), "id": uuid.UUID(int=1)}
    assert json.loads(prepare(Message(channel="topic:a", data=data)).body)["data"] == {
        "order": {"number": 7, "price": 1.5}, "at": "2026-01-02", "id": "00000000-0000-0000-0000-000000000001",
    }  # fmt: skip


def test_encoded_json_keeps_its_numbers_and_strings_to_the_letter() -> None:
    raw = b'{"a": 1.10,\n "b": 18446744073709551617, "c": "\\u00e9"}'
    body = prepare({"channel": "topic:a", "data": msgspec.Raw(raw)}).body
    assert b'"data":{"a":1.10,"b":18446744073709551617,"c":"\\u00e9"}' in body


@pytest.mark.parametrize(("message", "fault"), [
    ({}, "exactly one"),
    ({"channel": "topic:a", "user": "42"}, "exactly one"),
    ({"channel": "news"}, "not a channel"),
    ({"channel": "Topic:a"}, "not a channel"),
    ({"channel": "topic:"}, "not a channel"),
    ({"channel": "topic:" + "x" * 201}, "not a channel"),
    ({"channel": "topic:a b"}, "not a channel"),
    ({"channel": "topic:a\n"}, "not a channel"),
    ({"channel": "topic:\ud800"}, "not a channel"),
    ({"channel": "topic:*"}, "not a channel"),
    ({"channel": 7}, r"Expected `str \| null`, got `int` - at `\$.channel`"),
    ({"user": "a,b"}, "not a channel"),
    ({"users": "42"}, "Expected `array"),
    ({"channels": []}, "channels is empty"),
    ({"users": ["ok", "not ok"]}, "not a channel"),
    ({"channel": "topic:a", "event": ""}, "event"),
    ({"channel": "topic:a", "event": "a\nb"}, "event must not hold control"),
    ({"channel": "topic:a", "event": "\ud800"}, "lone surrogates"),
    ({"channel": "topic:a", "event": "error"}, "reserved"),
    ({"channel": "topic:a", "event": "ringcast.ping"}, "reserved"),
    ({"channel": "topic:a", "data": float("nan")}, "not JSON"),
    ({"channel": "topic:a", "data": Order(1, float("inf"))}, "not JSON"),
    ({"channel": "topic:a", "data": ["\udc00"]}, "not JSON"),
    ({"channel": "topic:a", "data": object()}, "not JSON"),
    ({"channel": "topic:a", "data": {("a", "b"): 1}}, "not JSON"),
    ({"channel": "topic:a", "data": msgspec.Raw(b"{} {}")}, "not JSON"),
    ({"channel": "topic:a", "data": msgspec.Raw(b'"\xff"')}, "not JSON"),
    ({"channel": "topic:a", "data": msgspec.Raw(b"NaN")}, "not JSON"),
    ({"channel": "topic:a", "version": [1]}, "give a key too"),
    ({"channel": "topic:a", "deleted": True}, "give a key too"),
    ({"channel": "topic:a", "ttl": 5}, "give a key too"),
    ({"channel": "topic:a", "key": "k", "ttl": 0}, "ttl"),
    ({"channel": "topic:a", "key": "k", "ttl": float("nan")}, "ttl"),
    ({"channel": "topic:a", "key": "k", "version": []}, "version"),
    ({"channel": "topic:a", "key": "k", "version": [-1]}, "version"),
    ({"channel": "topic:a", "key": "k", "version": [1] * 6}, "version"),
    ({"channel": "topic:a", "key": "k", "version": 3}, "version"),
    ({"channel": "topic:a", "key": ""}, "key"),
    ({"channel": "topic:a", "id": ""}, "id"),
    ({"channel": "topic:a", "id": "x" * 201}, "id"),
    ({"channel": "topic:a", "chanel": 1}, "unknown field `chanel`"),
    ("topic:a", "Expected `object`"),
])  # fmt: skip
def test_what_cannot_be_a_message_says_why(message: Any, fault: str) -> None:
    with pytest.raises(InvalidMessage, match=fault):
        prepare(message)


def test_data_that_holds_itself_or_is_too_deep_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = None
    for _ in range(100_000):
        deep = [deep]
    for data in (loop, deep):
        with pytest.raises(InvalidMessage, match="not JSON"):
            prepare({"channel": "topic:a", "data": data})


def test_any_mapping_and_any_sequence_will_do() -> None:
    entry = prepare(MappingProxyType({"users": ("1", "2"), "id": "x"}))
    assert json.loads(entry.body) == {"users": ["1", "2"], "id": "x", "data": None}
    assert not entry.single


def test_an_id_is_made_once_and_sorts_by_time() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(id) == 26 for id in ids)
    assert prepare({"channel": "topic:a"}).id[:6] == new_id()[:6]


@pytest.mark.parametrize("error", [
    InvalidMessage("no"),
    Refused("forbidden", 403, "no"),
    Unavailable("away", id="x", attempts=2, status=503, retry_after=1.5),
    TargetsFailed([Receipt("topic:a", 1, "x")], {"topic:b": Refused("forbidden", 403, "no")}),
])  # fmt: skip
def test_errors_survive_pickling_as_task_queues_do_it(error: PublishError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert set(vars(twin)) == set(vars(error))


def test_a_users_partition_is_the_gateways() -> None:
    golden = json.loads(Path(__file__).parents[1].joinpath("golden", "partitions.json").read_text())
    users = {channel.removeprefix("user:"): counts for channel, counts in golden.items() if channel.startswith("user:")}
    assert len(users) >= 3
    for user, by_count in users.items():
        assert {count: partition(user, int(count)) for count in by_count} == by_count
        assert partition(user) == by_count["1024"]
