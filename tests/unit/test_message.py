"""The words of the wire: channel and event names, cursors, ids, partitions and frames."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.message import (
    MAX_OFFSET,
    Control,
    Draft,
    Message,
    check_channel,
    check_event,
    clip,
    decode_cursor,
    encode_cursor,
    format_time,
    namespace,
    new_id,
    partition_of,
    routing_key,
)
from tests.support.sse import Parser

LIMIT = 1 << 20

namespaces = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True)
names = st.text(min_size=1, max_size=200).filter(lambda s: s.isprintable() and not set(s) & set(" ,*"))
channels = st.builds("{}:{}".format, namespaces, names)
offsets = st.integers(0, MAX_OFFSET)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


# Channels


@given(channels)
def test_well_formed_channels_are_taken_as_they_are(channel: str) -> None:
    assert check_channel(channel) == channel
    assert namespace(channel) == channel.split(":")[0]


@pytest.mark.parametrize("channel", ["user:42", "topic:日本", "a-b_9:x", "room:a:b", "user:" + "x" * 200, "user:🦊"])
def test_examples_of_channels(channel: str) -> None:
    assert check_channel(channel) == channel


@pytest.mark.parametrize(
    "channel",
    ["", "user", "user:", ":42", "User:42", "9user:42", "usér:42", "user 1:2", "user:a b", "user:a,b", "user:*",
     "user:a*", "user:\n", "user:\u2028", "user:\u200b", "user:\u00a0", "user:\ud800", "user:" + "x" * 201,
     "u" * 64 + ":x", "user:\0"],
)  # fmt: skip
def test_malformed_channels_are_refused(channel: str) -> None:
    with pytest.raises(ValueError, match=r"^channel '"):
        check_channel(channel)


@given(st.text(max_size=300))
def test_any_text_is_a_channel_or_a_value_error_that_can_be_shown(text: str) -> None:
    try:
        said = check_channel(text)
    except ValueError as refusal:
        said = str(refusal)
    else:
        assert said == text
    assert said.isprintable()
    assert len(said) < 1000


def test_look_alikes_are_other_channels() -> None:
    composed, decomposed = "user:\u00e9", "user:e\u0301"
    assert check_channel(composed) != check_channel(decomposed)
    assert partition_of(composed, 1024) != partition_of(decomposed, 1024)


# Events


@pytest.mark.parametrize("event", ["order.shipped", "message", "x", "größer", "a b", "x" * 200, "opened", "ringcast"])
def test_event_names_that_every_transport_can_carry(event: str) -> None:
    assert check_event(event) == event


@pytest.mark.parametrize(
    "event", ["", "x" * 201, "a\nb", "a\rb", "a\0b", "a\x85b", "a\x7f", "\ud800", "open", "error", "ringcast.ping"]
)
def test_event_names_that_some_transport_cannot_carry(event: str) -> None:
    with pytest.raises(ValueError, match=r"^event "):
        check_event(event)


@given(st.text(max_size=210))
def test_an_accepted_event_arrives_whole_over_sse(event: str) -> None:
    try:
        check_event(event)
    except ValueError:
        return
    (parsed,) = Parser().feed(Message("a:b", 1, "id", event, b"1", 0).sse)
    assert parsed.event == event


# Cursors


@given(st.dictionaries(channels, offsets, max_size=20))
def test_a_cursor_gives_back_its_positions(positions: dict[str, int]) -> None:
    cursor = encode_cursor(positions)
    assert decode_cursor(cursor, LIMIT) == positions
    assert not set(cursor) & set("+/=")  # fits a URL and a header as it is


@given(st.dictionaries(channels, offsets, max_size=5), st.booleans())
def test_a_client_may_build_its_own(positions: dict[str, int], escaped: bool) -> None:
    text = json.dumps(positions, ensure_ascii=escaped, indent=1)
    for cursor in (base64.urlsafe_b64encode(text.encode()).decode(), encode_cursor(positions)):
        assert decode_cursor(cursor.rstrip("="), LIMIT) == positions
        assert decode_cursor(cursor, LIMIT) == positions  # padding does no harm


def of(text: str | bytes) -> str:
    return base64.urlsafe_b64encode(text if isinstance(text, bytes) else text.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "cursor",
    ["", "!", "a", "ü", "e30 ", "e3\n0", of("[]"), of("{"), of("null"), of('{"user:1":1.5}'), of('{"user:1":"1"}'),
     of('{"user:1":null}'), of('{"user:1":true}'), of('{"user:1":-1}'), of('{"user:1":9007199254740992}'),
     of('{"user:1":1e99}'), of('{"user":1}'), of('{"user:a b":1}'), of('{"user:1":1} x'), of(b'{"user:\xff":1}'),
     of('{"user:\\ud800":1}'), of('{"user:1":NaN}'), of(b"\xef\xbb\xbf{}")],
)  # fmt: skip
def test_malformed_cursors_are_refused(cursor: str) -> None:
    with pytest.raises(ValueError, match=r"cursor|channel"):
        decode_cursor(cursor, LIMIT)


@given(st.text(max_size=100) | st.binary(max_size=100).map(of))
def test_any_text_is_a_cursor_or_a_value_error(text: str) -> None:
    try:
        positions = decode_cursor(text, LIMIT)
    except ValueError:
        return
    assert all(0 <= offset <= MAX_OFFSET for offset in positions.values())


def test_a_cursor_above_its_limit_is_refused_before_it_is_read() -> None:
    cursor = encode_cursor({"user:1": 1})
    assert decode_cursor(cursor, len(cursor))
    with pytest.raises(ValueError, match="only 10 fit here"):
        decode_cursor("!" * 11, 10)


# Ids


def test_an_id_is_a_ulid_of_now() -> None:
    before = int(time.time() * 1000)
    made = new_id()
    after = int(time.time() * 1000)
    assert len(made) == 26
    assert set(made) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    milliseconds = 0
    for character in made[:10]:
        milliseconds = milliseconds * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(character)
    assert before <= milliseconds <= after


def test_ids_are_unique_and_later_milliseconds_sort_later() -> None:
    made = [new_id() for _ in range(2000)]
    assert len(set(made)) == len(made)
    assert [each[:10] for each in made] == sorted(each[:10] for each in made)


# Partitions


@pytest.mark.parametrize(
    ("channel", "key"),
    [
        ("user:42", "42"), ("jobs:42", "42"), ("ringcast:user.42", "42"), ("presence:user:42", "42"),
        ("topic:news", "topic:news"), ("presence:topic:news", "topic:news"), ("ringcast:nodes", "ringcast:nodes"),
        ("users:42", "users:42"), ("presence:presence:user:7", "7"),
    ],
)  # fmt: skip
def test_what_belongs_to_a_user_is_placed_by_the_user(channel: str, key: str) -> None:
    assert routing_key(channel) == key
    assert partition_of(channel, 1024) == int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) % 1024


def test_a_table_of_presence_lies_in_the_partition_it_names() -> None:
    assert [partition_of(f"ringcast:presence.{number}", 1024) for number in (0, 7, 1023)] == [0, 7, 1023]
    for odd in ("ringcast:presence.", "ringcast:presence.x", "ringcast:presence.\u0667", "ringcast:presence.-1"):
        assert partition_of(odd, 1024) == int(hashlib.sha256(odd.encode()).hexdigest()[:16], 16) % 1024


def test_presence_is_told_of_every_channel_that_is_not_the_gateways_own() -> None:
    longest = "room:" + "x" * 200
    assert check_channel(f"presence:{longest}") == f"presence:{longest}"
    for odd in (f"presence:{longest}x", "presence:presence:room:1" + "x" * 200, "presence:nothing", "presence:room:"):
        with pytest.raises(ValueError, match="channel"):
            check_channel(odd)


def test_partitions_never_change() -> None:
    """Golden values: a deployment's stored logs, and proxies that compute the partition, depend on them for ever."""
    golden = json.loads(Path(__file__).parents[1].joinpath("golden", "partitions.json").read_text())
    for channel, by_count in golden.items():
        assert {count: partition_of(channel, int(count)) for count in by_count} == by_count


@given(channels, st.integers(1, 65536))
def test_a_partition_lies_within_its_count(channel: str, count: int) -> None:
    assert 0 <= partition_of(channel, count) < count


# Frames


@given(channels, st.integers(1, MAX_OFFSET), json_values, st.integers(0, 4102444800000))
def test_a_message_wraps_the_publishers_own_bytes(channel: str, offset: int, data: Any, when: int) -> None:
    raw = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
    message = Message(channel, offset, "01JD", "order.shipped", raw, when)
    assert json.loads(message.json) == {
        "type": "message", "channel": channel, "offset": offset, "id": "01JD", "event": "order.shipped", "data": data,
        "time": format_time(when),
    }  # fmt: skip
    assert raw in message.json
    assert message.text.encode() == message.json
    (event,) = Parser().feed(message.sse)
    assert (event.event, event.data) == ("order.shipped", message.text)


def test_numbers_arrive_as_they_were_written() -> None:
    data = b'{"big":18446744073709551615,"exact":0.1000000000000000055511151231257827,"exp":1E400}'
    assert data in Message("a:b", 1, "id", "e", data, 0).json


def test_a_keyed_message_names_its_key_version_and_deletion() -> None:
    message = Message("room:1", 5, "01JD", "left", b"null", 0, key="ann", version=(1, 2), deleted=True)
    frame = json.loads(message.json)
    assert (frame["key"], frame["version"], frame["deleted"]) == ("ann", [1, 2], True)
    plain = json.loads(Message("room:1", 5, "01JD", "joined", b"null", 0).json)
    assert not {"key", "version", "deleted"} & set(plain)


def test_a_message_is_charged_for_more_than_its_data() -> None:
    assert Message("a:b", 1, "id", "e", b"x" * 1000, 0).size >= 2000


def test_a_control_frame_leaves_out_what_is_not_there() -> None:
    frame = Control("subscribed", "user:1", id=7, offset=5, recovered=None)
    assert json.loads(frame.json) == {"type": "subscribed", "channel": "user:1", "id": 7, "offset": 5}
    (event,) = Parser().feed(frame.sse)
    assert (event.event, event.data) == ("ringcast.subscribed", frame.text)
    assert json.loads(Control("ping").text) == {"type": "ping"}


def test_times_are_rfc_3339_with_milliseconds() -> None:
    assert format_time(0) == "1970-01-01T00:00:00.000Z"
    assert format_time(1763640000123) == "2025-11-20T12:00:00.123Z"


def test_a_draft_tells_one_body_from_another() -> None:
    def digest(**changes: Any) -> bytes:
        return Draft(**({"channel": "a:b", "event": "e", "data": b"1", "id": "x"} | changes)).digest()

    assert digest() == digest(id="y", principal="other")
    for changes in ({"event": "f"}, {"data": b"2"}, {"key": "k"}, {"version": (1,)}, {"deleted": True}, {"ttl": 1.0}):
        assert digest(**changes) != digest(), changes


def test_what_an_error_shows_of_an_input_is_short_and_plain() -> None:
    assert clip("a\n\u2028ä") == r"'a\n\u2028\xe4'"
    assert len(clip("x" * 10**6)) < 80
