"""What becomes of a position: recovered, a reset of its channel alone, or a refusal. Never silence."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.support.clients import Client, Frame, Refused, connect, encode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.publishing import publish, publish_lines

ANN = token("ann", ["*"])
EVERYTHING = 2**53 - 1


def microseconds() -> int:
    return time.time_ns() // 1000


async def entries(client: Client) -> dict[str, Frame]:
    """What the welcome says of each channel; a poll has no such frame."""
    return {entry["channel"]: entry for entry in (await client.frame("welcome"))["channels"]}


async def comes_back(
    gateway: Gateway, transport: str, channel: str, position: int, *, reason: str, at: int, held: list[int]
) -> None:  # fmt: skip
    """Present a position that cannot be shown, beside one that can: the reset is of its channel alone.

    It stands at `at`, the `held` offsets follow, then what is published live; the other channel misses nothing.
    """
    other = f"{channel}-beside"
    async with await connect(transport, gateway.url, ANN, channels=[other]) as client:
        beside = (await client.joined())[other]
    missed = await publish(gateway, other, ["missed 1", "missed 2"])
    cursor = encode_cursor({channel: position, other: beside})
    async with await connect(transport, gateway.url, ANN, channels=[channel, other], cursor=cursor) as client:
        if transport != "poll":
            told = await entries(client)
            assert told[other] == {"channel": other, "offset": beside, "recovered": True}
            assert told[channel] == {"channel": channel, "offset": at, "recovered": False}
        live = await publish(gateway, other, ["live"]) + await publish(gateway, channel, ["live"])
        frames = await client.through(live[1])
        if client.positions[other] < live[0]:
            frames += await client.through(live[0])
    assert [f for f in frames if f["type"] == "reset"] == [
        {"type": "reset", "channel": channel, "reason": reason, "offset": at}
    ]
    assert [f["offset"] for f in frames if f["channel"] == other] == [*missed, live[0]]
    mine = [f for f in frames if f["channel"] == channel]
    assert mine[0]["type"] == "reset"
    assert [f["offset"] for f in mine[1:]] == [*held, live[1]]


async def test_a_position_of_the_future_is_reset(gateway: Gateway, transport: str) -> None:
    channel = f"topic:future-{transport}"
    held = await publish(gateway, channel, range(3))
    future = microseconds() + 3600 * 10**6
    await comes_back(gateway, transport, channel, future, reason="unknown", at=held[-1], held=[])


@pytest.mark.parametrize("position", [0, 1, 10**15])
async def test_a_position_from_before_the_store_began_is_reset(
    gateway: Gateway, transport: str, position: int
) -> None:  # fmt: skip
    channel = f"topic:past-{transport}-{position}"
    held = await publish(gateway, channel, range(3))
    await comes_back(gateway, transport, channel, position, reason="lost", at=position, held=held)


async def test_a_position_of_a_channel_that_was_never_used_is_reset(gateway: Gateway, transport: str) -> None:
    await comes_back(gateway, transport, f"topic:unused-{transport}", 12345, reason="lost", at=12345, held=[])


async def test_a_position_beyond_the_size_of_the_history_is_reset(gateway: Gateway, transport: str) -> None:
    channel = f"few:size-{transport}"
    offsets = await publish(gateway, channel, range(30))
    await comes_back(gateway, transport, channel, offsets[0], reason="trimmed", at=offsets[0], held=offsets[-10:])


async def test_a_position_at_the_edge_of_the_history_is_recovered(gateway: Gateway, transport: str) -> None:
    """The last one that misses nothing, and the first that misses one message."""
    channel = f"few:edge-{transport}"
    offsets = await publish(gateway, channel, range(30))
    for position, reset in ((offsets[-11], False), (offsets[-12], True)):
        cursor = encode_cursor({channel: position})
        async with await connect(transport, gateway.url, ANN, channels=[channel], cursor=cursor) as client:
            frames = await client.through(offsets[-1])
        assert [frame["type"] for frame in frames] == ["reset"] * reset + ["message"] * 10
        assert [frame["offset"] for frame in frames[reset:]] == offsets[-10:]


async def test_a_position_beyond_the_age_of_the_history_is_reset(gateway: Gateway, transport: str) -> None:
    channel = f"short:age-{transport}"
    offsets = await publish(gateway, channel, range(2))
    await asyncio.sleep(2.2)  # the retention of 2 s
    held = await publish(gateway, channel, ["held"])
    await comes_back(gateway, transport, channel, offsets[0], reason="trimmed", at=offsets[0], held=held)


async def test_a_position_between_two_messages_is_recovered(gateway: Gateway, transport: str) -> None:
    """It need not be a message's own: a checkpoint stands where the partition was."""
    channel = f"topic:between-{transport}"
    offsets = await publish(gateway, channel, [1])
    await asyncio.sleep(0.01)
    between = microseconds()
    await asyncio.sleep(0.01)
    offsets += await publish(gateway, channel, [2, 3])
    cursor = encode_cursor({channel: between})
    async with await connect(transport, gateway.url, ANN, channels=[channel], cursor=cursor) as client:
        if transport != "poll":
            assert (await entries(client))[channel] == {"channel": channel, "offset": between, "recovered": True}
        frames = await client.through(offsets[-1])
    assert [frame["offset"] for frame in frames] == offsets[1:]


async def test_channels_that_the_cursor_does_not_name_start_at_the_live_end(gateway: Gateway, transport: str) -> None:
    named, unnamed = f"topic:named-{transport}", f"topic:unnamed-{transport}"
    first = await publish(gateway, named, ["old"])
    await publish(gateway, unnamed, ["old"])
    async with await connect(
        transport, gateway.url, ANN, channels=[named, unnamed], cursor=encode_cursor({named: first[0] - 1})
    ) as client:
        if transport == "poll":
            await client.frame("checkpoint")
        else:
            told = await entries(client)
            assert told[named]["recovered"] is True
            assert "recovered" not in told[unnamed]
            assert await client.through(first[0])
        last = await publish(gateway, unnamed, ["new"])
        frames = await client.through(last[0])
    assert [frame["data"] for frame in frames] == ["new"]


async def test_channels_of_the_cursor_that_are_not_asked_for_are_not_subscribed(
    gateway: Gateway, transport: str
) -> None:  # fmt: skip
    """A cursor supplies positions and nothing else: neither channels nor permission."""
    offsets = await publish(gateway, "topic:theirs", range(3))
    cursor = encode_cursor({"topic:theirs": offsets[0]})
    async with await connect(transport, gateway.url, token("ben"), cursor=cursor) as client:
        assert set(await client.joined()) >= {"user:ben", "jobs:ben"}
        await publish(gateway, "topic:theirs", ["theirs"])
        mine = await publish(gateway, "user:ben", ["mine"])
        frames = await client.through(mine[0])
    assert [frame["channel"] for frame in frames] == ["user:ben"]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("body", [False, True], ids=["query", "body"])
@pytest.mark.parametrize(
    "cursor",
    [
        "!!!", "e", "e30=e30=", "é", b64(b"[]"), b64(b"{"), b64(b"null"), b64(b'{"topic:a":"1"}'), b64(b"\xff"),
        b64(b'{"topic:a":-1}'), b64(b'{"topic:a":9007199254740992}'), b64(b'{"topic:a":1.5}'), b64(b'{"nowhere":1}'),
        b64(b'{"topic:a":null}'), b64(b'{"topic:a b":1}'), b64(b'{"topic:a":1' + b"0" * 400 + b"}"),
        b64(b'{"topic:\xff":1}'), b64(b"[" * 2000),
    ],
)  # fmt: skip
async def test_a_malformed_cursor_is_refused(gateway: Gateway, transport: str, body: bool, cursor: str) -> None:
    with pytest.raises(Refused) as refusal:
        await connect(transport, gateway.url, ANN, channels=["topic:a"], cursor=cursor, body=body)
    assert refusal.value.code == 4008
    if transport != "websocket":
        assert refusal.value.status == 400
        assert refusal.value.problem["code"] == "bad_cursor"


def cursor_of(size: int) -> str:
    """A well-formed cursor of at least so many bytes."""
    positions: dict[str, int] = {}
    while len(cursor := encode_cursor(positions)) < size:
        more = max(1, (size - len(cursor)) // 300)
        positions |= {f"topic:{len(positions) + n:0180d}": EVERYTHING for n in range(more)}
    return cursor


async def test_a_cursor_that_is_too_large_for_a_url_is_refused_there(gateway: Gateway, transport: str) -> None:
    with pytest.raises(Refused) as refusal:
        await connect(transport, gateway.url, ANN, channels=["topic:a"], cursor=cursor_of(4097))
    assert refusal.value.code == 4008
    if transport != "websocket":
        assert refusal.value.status == 400
        assert refusal.value.problem["code"] == "bad_cursor"


async def test_a_query_that_is_too_large_is_refused(gateway: Gateway, transport: str) -> None:
    with pytest.raises(Refused) as refusal:
        await connect(transport, gateway.url, ANN, channels=["topic:a"], cursor=cursor_of(7200))
    assert refusal.value.code == 4009
    if transport != "websocket":
        assert refusal.value.status == 413


async def test_a_cursor_that_is_too_large_for_a_body_is_refused(gateway: Gateway, transport: str) -> None:
    with pytest.raises(Refused) as refusal:
        await connect(transport, gateway.url, ANN, channels=["topic:a"], cursor=cursor_of(66000), body=True)
    assert refusal.value.code in (4008, 4009)


async def test_a_large_cursor_travels_in_a_body(gateway: Gateway, transport: str) -> None:
    """More channels than a URL can hold, each with its position, one of them with something missed."""
    channels = [f"topic:wide-{transport}-{n:04d}" for n in range(600)]
    async with await connect(transport, gateway.url, ANN, channels=channels, body=True) as client:
        positions = await client.joined()
    assert set(channels) < set(positions)
    missed = await publish(gateway, channels[300], ["missed"])
    assert 4 << 10 < len(client.cursor) < 48 << 10
    async with await connect(
        transport, gateway.url, ANN, channels=channels, cursor=client.cursor, body=True
    ) as client:  # fmt: skip
        live = await publish(gateway, channels[599], ["live"])
        frames = await client.through(live[0])
    assert [frame["offset"] for frame in frames] == [*missed, *live]


async def test_more_channels_than_a_cursor_in_a_url_can_name_are_refused_there(
    gateway: Gateway, transport: str
) -> None:  # fmt: skip
    with pytest.raises(Refused) as refusal:
        await connect(transport, gateway.url, ANN, channels=[f"topic:{n:040d}" for n in range(60)])
    assert refusal.value.code == 4008
    if transport != "websocket":
        assert refusal.value.status == 400
        assert refusal.value.problem["code"] == "too_many_channels"


async def test_more_channels_than_a_session_may_have_are_refused(gateway: Gateway, transport: str) -> None:
    with pytest.raises(Refused) as refusal:
        await connect(transport, gateway.url, ANN, channels=[f"topic:{n}" for n in range(999)], body=True)
    assert refusal.value.code == 4008


async def first_frames(gateway: Gateway, transport: str, channel: str, since: str) -> list[Frame]:
    """What comes first with this `since`, up to a live message."""
    async with await connect(transport, gateway.url, ANN, channels=[channel], since=since) as client:
        if transport != "poll":
            assert "recovered" not in (await entries(client))[channel]
        live = await publish(gateway, channel, ["live"])
        return await client.through(live[0])


async def test_since_earliest_begins_with_all_that_is_held(gateway: Gateway, transport: str) -> None:
    channel = f"few:earliest-{transport}"
    offsets = await publish(gateway, channel, range(15))
    frames = await first_frames(gateway, transport, channel, "earliest")
    assert all(frame["type"] == "message" for frame in frames)
    assert [frame["offset"] for frame in frames[:-1]] == offsets[5:]


async def test_since_latest_begins_with_what_comes(gateway: Gateway, transport: str) -> None:
    channel = f"topic:latest-{transport}"
    await publish(gateway, channel, range(3))
    assert [frame["data"] for frame in await first_frames(gateway, transport, channel, "latest")] == ["live"]


AFTER_THE_FIRST: list[Callable[[datetime], str]] = [
    lambda at: at.isoformat(),
    lambda at: at.isoformat().replace("+00:00", "Z"),
    lambda at: f"{(datetime.now(UTC) - at).total_seconds() * 1000:.0f}ms",
]


@pytest.mark.parametrize("written", AFTER_THE_FIRST, ids=["offset", "zulu", "duration"])
async def test_since_a_time_begins_there(gateway: Gateway, transport: str, written: Callable[[datetime], str]) -> None:
    channel = f"topic:time-{transport}-{AFTER_THE_FIRST.index(written)}"
    await publish(gateway, channel, ["before"])
    await asyncio.sleep(0.1)
    at = datetime.now(UTC)
    await asyncio.sleep(0.1)
    await publish(gateway, channel, ["after"])
    frames = await first_frames(gateway, transport, channel, written(at))
    assert [frame["data"] for frame in frames] == ["after", "live"]


@pytest.mark.parametrize("since", ["1h", "24h", "1970-01-01T00:00:00Z"])
async def test_since_a_time_before_the_store_began_is_no_reset(gateway: Gateway, transport: str, since: str) -> None:
    channel = f"topic:long-ago-{transport}-{since.lower()}"
    offsets = await publish(gateway, channel, range(3))
    frames = await first_frames(gateway, transport, channel, since)
    assert [(frame["type"], frame["offset"]) for frame in frames[:3]] == [("message", offset) for offset in offsets]


@pytest.mark.parametrize("since", ["yesterday", "5 minutes", "-5m", "2026-13-01T00:00:00Z", "nan", "1e9h", "9" * 400])
async def test_a_malformed_since_is_refused(gateway: Gateway, transport: str, since: str) -> None:
    with pytest.raises(Refused) as refusal:
        await connect(transport, gateway.url, ANN, channels=["topic:a"], since=since)
    assert refusal.value.code == 4008


async def test_a_cursor_beats_since_where_it_names_the_channel(gateway: Gateway, transport: str) -> None:
    named, unnamed = f"topic:cursor-{transport}", f"topic:since-{transport}"
    offsets = await publish(gateway, named, range(3))
    await publish(gateway, unnamed, range(3))
    async with await connect(
        transport, gateway.url, ANN, channels=[named, unnamed], since="earliest",
        cursor=encode_cursor({named: offsets[1]}),
    ) as client:  # fmt: skip
        frames = await client.messages(4)
    assert [f["data"] for f in frames if f["channel"] == named] == [2]
    assert [f["data"] for f in frames if f["channel"] == unnamed] == [0, 1, 2]


async def snapshot_of(client: Client, channel: str) -> list[Frame]:
    if client.transport == "poll":
        snapshot: list[Frame] = (await client.frame("snapshot"))["snapshot"]
        return [message for message in snapshot if message["channel"] == channel]
    found: list[Frame] = (await entries(client))[channel]["snapshot"]
    return found


async def test_a_snapshot_is_the_newest_value_of_each_key(gateway: Gateway, transport: str) -> None:
    channel = f"table:state-{transport}"
    for key, value in (("a", 1), ("b", 1), ("a", 2), ("c", 1)):
        await publish(gateway, channel, [value], key=key)
    await publish(gateway, channel, [None], key="b", deleted=True)
    async with await connect(transport, gateway.url, ANN, channels=[channel], snapshot=True) as client:
        snapshot = await snapshot_of(client, channel)
        live = await publish(gateway, channel, [3], key="a")
        frames = await client.through(live[0])
    assert [(message["key"], message["data"]) for message in snapshot] == [("a", 2), ("c", 1)]
    assert [(frame["key"], frame["data"]) for frame in frames] == [("a", 3)]


async def test_with_a_time_too_a_snapshot_is_of_tables_and_the_time_of_the_rest(
    gateway: Gateway, transport: str
) -> None:  # fmt: skip
    table, log = f"table:both-{transport}", f"topic:both-{transport}"
    await publish(gateway, table, range(3), key="a")
    await publish(gateway, log, range(3))
    async with await connect(
        transport, gateway.url, ANN, channels=[table, log], since="earliest", snapshot=True
    ) as client:  # fmt: skip
        snapshot = await snapshot_of(client, table)
        await publish(gateway, table, [3], key="a")
        frames = await client.messages(4)
    assert [message["data"] for message in snapshot] == [2]
    assert [frame["data"] for frame in frames if frame["channel"] == log] == [0, 1, 2]
    assert [frame["data"] for frame in frames if frame["channel"] == table] == [3]


async def test_the_stream_continues_a_snapshot_without_a_gap(gateway: Gateway, transport: str) -> None:
    """Keys count up while clients join: whatever the snapshot says, the next value of that key is one more."""
    channel = f"table:counts-{transport}"
    await publish(gateway, channel, [-1], key="0")

    async def join() -> None:
        async with await connect(transport, gateway.url, ANN, channels=[channel], snapshot=True) as client:
            values = {message["key"]: message["data"] for message in await snapshot_of(client, channel)}
            while max(values.values()) < 599:
                frame = await client.message()
                assert frame["data"] == max(values.values()) + 1
                values[frame["key"]] = frame["data"]

    joining: list[asyncio.Task[None]] = []
    for first in range(0, 600, 30):
        values = range(first, first + 30)
        lines = [json.dumps({"channel": channel, "data": value, "key": str(value % 3)}) for value in values]
        joining.append(asyncio.create_task(join()))
        await publish_lines(gateway, lines)
    await asyncio.gather(*joining)
