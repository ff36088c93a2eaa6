"""Formats: what the first release stored is read by today's code, both write beside each other, and what comes from a
newer release is never passed over in silence."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from gateway.brokers import nats_format, open_broker, redis_store
from gateway.brokers.base import Broker
from gateway.errors import Problem
from gateway.message import Draft, Message
from gateway.settings import ConfigError
from tests.brokers.conftest import opened
from tests.support.broker_steps import NEWS, draft, follow, publish, publish_when_back, read_all
from tests.support.deployments import RedisAlone, Watcher
from tests.support.nats import NatsAlone
from tests.support.older import older_node
from tests.support.stored import DRAFTS, SETTINGS, golden, held, load_nats, load_redis, raw

CHANNELS = sorted({draft.channel for draft in DRAFTS})


@pytest.fixture
async def redis() -> AsyncIterator[RedisAlone]:
    async with opened(RedisAlone()) as store:
        yield store


# ---------------------------------------------------------------- what the first release stored


async def read_of_the_first_release(broker: Broker, watcher: Watcher, receipts: list[int]) -> None:
    """All that `DRAFTS` and their receipts say holds, and the log goes on behind them."""
    await follow(broker, *CHANNELS)
    sent = list(zip(DRAFTS, receipts, strict=True))
    for channel in CHANNELS:
        mine = [(offset, each.id, each.data) for each, offset in sent if each.channel == channel]
        expected = mine if channel != "state:1" else mine[-2:]  # of two keys the newest
        assert await held(broker, channel, mine[0][0] - 1) == expected
        for offset, _, _ in mine:
            assert (await broker.read(channel, offset, 10)).continuous, (channel, offset)
    assert [(m.key, m.data, m.version) for m in (await broker.snapshot("room:1")).messages] == [("a", b"2", (2, 7))]
    assert [(m.key, m.data) for m in (await broker.snapshot("state:1")).messages] == [("k1", b"3"), ("k0", b"4")]
    again = await broker.publish(DRAFTS[0])
    assert (again.duplicate, again.offset) == (True, receipts[0])
    with pytest.raises(Problem) as refused:
        await broker.publish(draft("room:1", key="a", version=(2, 6)))
    assert refused.value.code == "stale_version"
    new = await publish(broker, *CHANNELS)
    assert min(new) > max(receipts)
    for channel, offset in zip(CHANNELS, new, strict=True):
        await watcher.knows(offset)
        last = max(offset for each, offset in sent if each.channel == channel)
        found, page = await read_all(broker, channel, last)
        assert page.continuous
        assert found == [offset]


async def test_what_the_first_release_stored_on_redis_is_read(redis: RedisAlone) -> None:
    fixture = golden("redis-1")
    with redis.server.client() as client:
        load_redis(client, fixture["keys"])
    async with redis.node(**SETTINGS) as (broker, watcher):
        await read_of_the_first_release(broker, watcher, fixture["receipts"])


async def test_what_the_first_release_stored_on_nats_is_read(alone: NatsAlone) -> None:
    fixture = golden("nats-1")
    await load_nats(alone, fixture["streams"])
    async with alone.node(**SETTINGS) as (broker, watcher):
        await read_of_the_first_release(broker, watcher, fixture["receipts"])


def fields(message: Message | Draft) -> tuple[Any, ...]:
    return message.channel, message.id, message.event, message.data, message.key, message.version, message.deleted


def test_what_the_first_release_announced_on_redis_is_heard() -> None:
    fixture = golden("redis-1")
    frames = [redis_store.decode_frame(0, raw(payload)) for _, payload in fixture["live"]]
    assert [fields(frame.message) for frame in frames] == [fields(each) for each in DRAFTS]
    assert [frame.message.offset for frame in frames] == fixture["receipts"]
    names = redis_store.Names("ringcast", SETTINGS["partitions"])
    found = [names.subject(names.partition(frame.message.channel)) for frame in frames]
    assert found == [raw(subject) for subject, _ in fixture["live"]]


def test_what_the_first_release_announced_on_nats_is_heard() -> None:
    live = [msg for msg in golden("nats-1")["live"] if not msg["subject"].endswith("@")]
    heard = [nats_format.decode(raw(msg["data"])) for msg in live]
    found = [fields(meta.message(0, data)) for meta, data in heard]
    assert sorted(found, key=repr) == sorted((fields(each) for each in DRAFTS), key=repr)


def test_a_trace_is_read_as_it_was_first_written() -> None:
    """On NATS an earlier release reads the same line without it; on Redis a node is asked first whether it can."""
    fixture = golden("traced")
    traced = msgspec.structs.replace(DRAFTS[4], trace=fixture["trace"])
    frame = redis_store.decode_frame(0, raw(fixture["redis"]))
    meta, data = nats_format.decode(raw(fixture["nats"]))
    for message in (frame.message, meta.message(0, data)):
        assert fields(message) == fields(traced)
        assert message.trace == fixture["trace"]
    line, _, _ = raw(fixture["nats"]).partition(b"\n")
    older = msgspec.json.decode(line, type=nats_format.Untraced)
    assert (older.format, older.id, older.version) == (1, "r1", (1,))
    assert nats_format.encode(traced, older.history, older.time, older.ttl) == raw(fixture["nats"])


def test_without_a_trace_nothing_more_is_written_than_by_the_first_release() -> None:
    for msg in golden("nats-1")["live"]:
        if not msg["subject"].endswith("@"):
            meta, _ = nats_format.decode(raw(msg["data"]))
            mine = next(each for each in DRAFTS if each.id == meta.id)
            assert nats_format.encode(mine, meta.history, meta.time, meta.ttl) == raw(msg["data"])


# ---------------------------------------------------------------- both releases in one store


async def test_nodes_of_both_releases_share_one_redis(redis: RedisAlone) -> None:
    channels = [NEWS, "room:1", "state:1"]
    async with older_node(redis, **SETTINGS) as (older, heard):
        await follow(older, *channels)
        await older.publish(draft("room:1", key="short", ttl=0.5))
        await older.publish(draft("room:1", key="long", version=(1,)))
        async with redis.node(**SETTINGS) as (newer, also):
            await follow(newer, *channels)
            begun = dict(zip(channels, await publish(older, *channels), strict=True))
            offsets: dict[str, list[int]] = {channel: [] for channel in channels}
            for number in range(30):
                for broker in (older, newer):
                    for channel in channels:
                        key = None if channel == NEWS else f"k{number % 3}"
                        receipt = await broker.publish(draft(channel, b"%d" % number, key=key))
                        offsets[channel].append(receipt.offset)
            once = draft(id="7", principal="key:a", idempotent=True)
            offsets[NEWS].append((await older.publish(once)).offset)
            assert (await newer.publish(once)).duplicate
            with pytest.raises(Problem):
                await newer.publish(draft("room:1", key="long", version=(1,)))
            for channel in channels:
                for watcher in (heard, also):
                    await watcher.knows(offsets[channel][-1])
                    assert not watcher.gaps()
                    sent = [message.offset for message in watcher.messages(channel) if message.event == "test"]
                    assert [offset for offset in sent if offset > begun[channel]] == offsets[channel]
            for broker in (older, newer):
                assert (await read_all(broker, NEWS, begun[NEWS]))[0] == offsets[NEWS]
                assert [m.data for m in (await broker.snapshot("state:1")).messages] == [b"27", b"28", b"29"]
            await also.until(lambda: any(m.deleted for m in also.messages("room:1")))  # the older one's key ended too
            assert [m.key for m in also.messages("room:1") if m.deleted] == ["short"]


async def test_what_redis_lost_is_told_by_nodes_of_both_releases(redis: RedisAlone) -> None:
    async with older_node(redis) as (older, heard), redis.node() as (newer, also):
        for broker in (older, newer):
            await follow(broker, NEWS)
        (kept,) = await publish(older, NEWS)
        await redis.copy()
        lost = [*await publish(older, NEWS), *await publish(newer, NEWS)]
        for watcher in (heard, also):
            await watcher.knows(lost[-1])
        await redis.go_back()
        for watcher in (heard, also):
            await watcher.until(lambda watcher=watcher: max(watcher.gaps(), default=0) > lost[-1])
        new = await publish_when_back(newer, NEWS)
        for broker, watcher in ((older, heard), (newer, also)):
            await watcher.knows(new)
            for since in (kept, *lost):
                page = await broker.read(NEWS, since, 10)
                assert (page.continuous, page.reason) == (False, "lost")
            assert (await broker.read(NEWS, new, 10)).continuous


# ---------------------------------------------------------------- what comes from a newer release


async def test_a_newer_format_on_redis_is_told_as_a_gap_and_a_reset(
    redis: RedisAlone, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis.node() as (broker, watcher):
        await follow(broker, NEWS)
        (first,) = await publish(broker, NEWS)
        await watcher.knows(first)
        names = redis_store.Names("ringcast", 16)
        number = broker.partition(NEWS)
        newer = first + 1000
        with redis.server.client() as client:
            client.hset(names.part(number), "top", newer)
            client.xadd(names.log(number, NEWS), {"prev": first, "edge": newer, "m": b"2what is this"}, id=str(newer))
            client.publish(names.subject(number), b"3 and this?")
        await watcher.until(lambda: watcher.gaps() == [newer])
        page = await broker.read(NEWS, first, 10)
        assert (page.continuous, page.messages, page.reached) == (False, [], newer)
        (last,) = await publish(broker, NEWS)
        await watcher.knows(last)
        assert watcher.messages(NEWS)[-1].offset == last
        page = await broker.read(NEWS, first, 10)
        assert (page.continuous, [message.offset for message in page.messages]) == (False, [last])
        assert (await broker.read(NEWS, newer, 10)).continuous
    assert caplog.text.count("upgrade this node") >= 2


async def test_a_newer_format_on_nats_is_told_as_a_gap_and_a_reset(
    alone: NatsAlone, caplog: pytest.LogCaptureFixture
) -> None:
    async with alone.node(channels={"room": {"keyed": True}}) as (broker, watcher):
        await follow(broker, NEWS, "room:1")
        (first,) = await publish(broker, NEWS)
        await watcher.knows(first)
        async with alone.servers[0].client() as client:
            await client.request(f"rc.l{broker.partition(NEWS)}.{NEWS}._", b'[2,{"what":"is this"}]\n1')
            kept = broker.partition("room:1") - 16
            await client.request(f"rc.k{kept}.room:1.k", b'[2,{"what":"is this"}]\n1')
        newer = (await broker.read(NEWS, first, 10)).top
        await watcher.until(lambda: newer in watcher.gaps())
        page = await broker.read(NEWS, first, 10)
        assert (page.continuous, page.messages, page.reached) == (False, [], newer)
        (last,) = await publish(broker, NEWS)
        await watcher.knows(last)
        page = await broker.read(NEWS, first, 10)
        assert (page.continuous, [message.offset for message in page.messages]) == (False, [last])
        assert (await broker.read(NEWS, newer, 10)).continuous
        for refused in (broker.snapshot("room:1"), broker.publish(draft("room:1", key="k", version=(1,)))):
            with pytest.raises(Problem, match="newer release"):
                await refused
    assert caplog.text.count("upgrade this node") >= 2


async def test_a_take_over_record_of_a_newer_format_stops_the_node_from_serving_that_stream(
    alone: NatsAlone, caplog: pytest.LogCaptureFixture
) -> None:
    async with alone.node(partitions=1) as (broker, watcher):
        await follow(broker, NEWS)
        (first,) = await publish(broker, NEWS)
        await watcher.knows(first)
        async with alone.servers[0].client() as client:
            await client.request("rc.l0.@", b'{"format":2,"what":"is this"}')
        for refused in (broker.read(NEWS, first, 10), broker.publish(draft())):
            with pytest.raises(Problem, match="this node has to be upgraded"):
                await refused
        await publish(broker, "jobs:1")  # of another stream
    assert "rc-l0 cannot be used: upgrade this node" in caplog.text


async def test_values_of_a_newer_format_on_redis_are_no_snapshot(redis: RedisAlone) -> None:
    async with redis.node(channels={"room": {"keyed": True}}) as (broker, _):
        await broker.publish(draft("room:1", key="a"))
        names = redis_store.Names("ringcast", 16)
        with redis.server.client() as client:
            client.hset(names.keys(broker.partition("room:1"), "room:1"), ":b", f"5 {1 << 52} 0  2?")
        with pytest.raises(Problem, match="newer release"):
            await broker.snapshot("room:1")


async def test_a_store_of_a_newer_format_refuses_to_start(redis: RedisAlone, alone: NatsAlone) -> None:
    with redis.server.client() as client:
        client.hset("ringcast:meta", "format", "2")
    broker = open_broker(redis.settings())
    with pytest.raises(ConfigError, match="kept in format 2 and this release reads format 1: upgrade this node"):
        await broker.start()
    await broker.close()
    async with alone.node(partitions=1), alone.servers[0].client() as client:
        answer = await client.request("$JS.API.STREAM.INFO.rc-l0", b"{}")
        config = json.loads(answer.data)["config"]
        config["metadata"]["ringcast.format"] = "2"
        await client.request("$JS.API.STREAM.UPDATE.rc-l0", json.dumps(config).encode())
    with pytest.raises(ConfigError, match="kept in format 2 and this release reads format 1: upgrade this node"):
        await open_broker(alone.settings(partitions=1)).start()
