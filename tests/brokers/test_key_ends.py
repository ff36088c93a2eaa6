"""Keys whose time is over: everyone hears their deletion once, whoever publishes it, and a new value stays."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.brokers import redis_store, redis_sweep
from gateway.brokers.base import Broker
from gateway.brokers.redis import RedisBroker
from gateway.errors import Problem
from gateway.message import Draft, new_id
from tests.brokers.conftest import opened
from tests.support.broker_steps import draft, follow, publish, read_all
from tests.support.deployments import Deployment, RedisAlone, RedisClustered

KEYED: dict[str, Any] = {"channels": {"room": {"keyed": True, "max_keys": 100}}}
ROOM = "room:1"


@pytest.fixture(params=[pytest.param(RedisAlone, id="redis"), pytest.param(RedisClustered, id="redis-cluster")])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    async with opened(request.param()) as store:
        yield store


def redis_of(broker: Broker) -> RedisBroker:
    assert isinstance(broker, RedisBroker)
    return broker


# ---------------------------------------------------------------- every store


async def test_a_keys_time_ends_with_a_deletion_that_everyone_hears_once(store: Deployment) -> None:
    async with store.node(**KEYED) as (ann, watcher), store.node(**KEYED) as (bob, also):
        await follow(ann, ROOM)
        await follow(bob, ROOM)
        await ann.publish(draft(ROOM, key="short", ttl=0.5, version=(3,)))
        await ann.publish(draft(ROOM, key="renewed", ttl=0.5))
        renewed = await bob.publish(draft(ROOM, key="renewed", ttl=60))
        await watcher.until(lambda: any(m.deleted and m.key == "short" for m in watcher.messages(ROOM)))
        await asyncio.sleep(1.2)  # both have looked once more
        (last,) = await publish(ann, ROOM)
        for each in (watcher, also):
            await each.knows(last)
            deletions = [message for message in each.messages(ROOM) if message.deleted]
            deletions = [m for m in deletions if m.key == "short" or m.offset > renewed.offset]  # it may have come late
            assert [(m.key, m.event, m.version, m.data) for m in deletions] == [("short", "expired", (3,), b"null")]
        assert [message.key for message in (await bob.snapshot(ROOM)).messages] == ["renewed"]


async def test_a_key_that_ended_while_no_node_was_there_is_deleted_by_the_next(store: Deployment) -> None:
    async with store.node(**KEYED) as (broker, _):
        broker.homes = list  # nobody is home
        receipt = await broker.publish(draft(ROOM, key="k", ttl=2))
        assert (await broker.snapshot(ROOM)).messages
    await asyncio.sleep(2.1)  # its time is what must pass, and nobody is there who could tell that it has
    async with store.node(**KEYED) as (broker, _):
        assert (await broker.snapshot(ROOM)).messages == []
        await follow(broker, ROOM)
        async with asyncio.timeout(15):
            while not (await broker.read(ROOM, receipt.offset, 10)).messages:  # noqa: ASYNC110 - as a client that polls
                await asyncio.sleep(0.05)
        page = await broker.read(ROOM, receipt.offset, 10)
        assert page.continuous
        assert [(message.key, message.deleted) for message in page.messages] == [("k", True)]


# ---------------------------------------------------------------- Redis


async def test_a_value_that_came_in_between_is_not_ended(redis: Deployment) -> None:
    async with redis.node(**KEYED) as (broker, _):
        broker.homes = list
        old = await broker.publish(draft(ROOM, key="k", ttl=0.05))
        new = await broker.publish(draft(ROOM, b"2", key="k"))
        ending = Draft(ROOM, "expired", b"null", new_id(), "k", deleted=True)
        for offset in (old.offset, 7):
            with pytest.raises(Problem) as refused:
                await redis_of(broker)._writer.publish(ending, offset)
            assert refused.value.code == "stale_version"
        await asyncio.sleep(0.1)
        await redis_of(broker).sweep(range(16))
        assert [message.offset for message in (await broker.snapshot(ROOM)).messages] == [new.offset]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, 20))])
async def test_sweepers_that_die_anywhere_end_each_key_once(
    redis: Deployment, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_sweep, "BATCH", 4)  # many steps to die between
    dice = random.Random(seed)
    rooms = [f"room:{number}" for number in range(5)]
    async with redis.node(**KEYED) as (ann, _), redis.node(**KEYED) as (bob, _):
        ann.homes = bob.homes = list
        (begun,) = await publish(ann, "room:begin")
        kept = []
        for room in rooms:
            for number in range(10):
                await ann.publish(draft(room, key=f"k{number}", ttl=0.3))
            kept.append(await ann.publish(draft(room, key="k3", ttl=60)))
        await asyncio.sleep(0.5)
        for _ in range(30):
            tasks = [asyncio.create_task(redis_of(broker).sweep(range(16))) for broker in (ann, bob)]
            await asyncio.sleep(dice.choice([0, 0.001, 0.003, 0.01]))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for broker in (ann, bob):
            for _ in range(4):  # so much is over in each partition
                await redis_of(broker).sweep(range(16))
        for room, receipt in zip(rooms, kept, strict=True):
            page = await bob.read(room, begun, 100)
            deletions = Counter(message.key for message in page.messages if message.deleted)
            assert deletions == {f"k{number}": 1 for number in range(10) if number != 3}
            assert [message.offset for message in (await ann.snapshot(room)).messages] == [receipt.offset]


async def test_deletions_are_kept_for_a_day_and_then_forgotten() -> None:
    async with opened(RedisAlone()) as redis, redis.node(**KEYED | {"partitions": 1}) as (broker, _):
        await broker.publish(draft(ROOM, key="k", ttl=1))
        deleted = await broker.publish(draft(ROOM, b"null", key="k", deleted=True, ttl=1))
        names = redis_store.Names("ringcast", 1)
        table, ends = names.keys(0, ROOM), names.ends(0)
        with redis.server.client() as client:
            client_: Any = client
            until = client_.zscore(ends, f"{ROOM}\0k") / 1e6
            assert 86390 < until - time.time() < 86410
            assert client_.pttl(table) > 86400_000
            await redis_of(broker).sweep([0])
            value = client_.hget(table, ":k")
            assert value is not None
            offset, _, rest = value.split(b" ", 2)
            client_.hset(table, ":k", b"%b 5 %b" % (offset, rest))  # a day later
            client_.zadd(ends, {f"{ROOM}\0k": 5})
            redis_of(broker)._sweep._look_at.clear()
            await redis_of(broker).sweep([0])
            assert client_.hgetall(table).keys() == {b"", b"#"}
            assert int(client_.hget(table, "")) == deleted.offset
            assert client_.zcard(ends) == 0


async def test_more_deletions_than_keys_are_forgotten_oldest_first_and_say_so() -> None:
    few: dict[str, Any] = {"channels": {"state": {"keyed": True, "max_keys": 3, "slow": "latest", "history_size": 1}}}
    async with opened(RedisAlone()) as redis, redis.node(**few, partitions=1) as (broker, _):
        (begun,) = await publish(broker, "state:1")
        offsets = []
        for number in range(40):
            await broker.publish(draft("state:1", key=f"k{number}"))
            receipt = await broker.publish(draft("state:1", b"null", key=f"k{number}", deleted=True))
            offsets.append(receipt.offset)
        await redis_of(broker).sweep([])
        with redis.server.client() as client:
            table: Any = client.hgetall(redis_store.Names("ringcast", 1).keys(0, "state:1"))
        assert sorted(field for field in table if field[:1] == b":") == [b":k37", b":k38", b":k39"]
        assert not (await broker.read("state:1", begun, 100)).continuous
        page = await broker.read("state:1", offsets[36], 100)
        assert page.continuous
        assert [message.key for message in page.messages] == ["k37", "k38", "k39"]
        assert (await read_all(broker, "state:1", offsets[-1]))[0] == []


async def test_a_partition_without_keys_costs_one_question_in_five_seconds() -> None:
    async with opened(RedisAlone()) as redis, redis.node() as (broker, _):
        await redis_of(broker).sweep(range(16))
        with redis.server.client() as client:
            client_: Any = client
            client_.config_resetstat()
            for _ in range(50):
                await redis_of(broker).sweep(range(16))
            assert client_.info("commandstats").get("cmdstat_zrange", {"calls": 0})["calls"] <= 16
