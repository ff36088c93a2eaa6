"""Policies that differ between nodes, or that change: every node says so, the newest counts, and nothing is missed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.brokers import nats, open_broker, policies, redis, redis_store
from gateway.brokers.base import Broker
from gateway.settings import ConfigError
from tests.brokers.conftest import opened
from tests.support.broker_steps import NEWS, draft, follow, publish, read_all
from tests.support.deployments import Deployment, RedisAlone, RedisClustered, expire
from tests.support.nats import NatsAlone

KEPT = [
    pytest.param(RedisAlone, id="redis"),
    pytest.param(RedisClustered, id="redis-cluster", marks=pytest.mark.chaos),
    pytest.param(NatsAlone, id="nats"),
]


@pytest.fixture(params=KEPT)
async def kept(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    """A store that outlives its nodes. Of `memory://` there is one node, and with its policy the store begins anew."""
    async with opened(request.param()) as store:
        yield store


def policy(**default: Any) -> dict[str, Any]:
    return {"channels": {"default": default}, "idempotency_window": 1}


def ages(history_ttl: int) -> dict[str, Any]:
    return policy(history_ttl=history_ttl)


async def gone(store: Deployment, broker: Broker, channel: str) -> None:
    """Wait until the channel holds nothing."""
    async with asyncio.timeout(20):
        while (await broker.read(channel, 1, 1)).messages:
            await asyncio.sleep(0.1)
            await expire(store)


# ---------------------------------------------------------------- what differs


async def test_another_policy_warns_on_every_node_and_the_newest_counts_on_all(
    kept: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (redis, nats):
        monkeypatch.setattr(module, "AGREE", 0.2)
    caplog.set_level(logging.WARNING)
    async with kept.node(**policy(history_size=10)) as (ann, _):
        await publish(ann, *[NEWS] * 5)
        assert "policy" not in caplog.text
        async with kept.node(**policy(history_size=30)) as (bob, _):
            assert "had another policy, and from now on has this node's: default.history_size = 10 -> 30" in caplog.text
            async with asyncio.timeout(10):
                while "which this node follows: default.history_size = 10 -> 30" not in caplog.text:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            caplog.clear()
            offsets = await publish(ann, *[NEWS] * 30)
            for broker in (ann, bob):
                page = await broker.read(NEWS, offsets[0], 100)
                assert page.continuous
                assert [message.offset for message in page.messages] == offsets[1:]
            async with kept.node(**policy(history_size=30)):  # the same again
                await asyncio.sleep(0.5)
            assert "policy" not in caplog.text


async def test_a_node_that_has_not_heard_of_a_policy_trims_nothing_by_its_own(kept: Deployment) -> None:
    async with kept.node(**policy(history_size=10)) as (ann, _):
        await publish(ann, NEWS)
        async with kept.node(**policy(history_size=30)) as (bob, _):
            first, *_ = await publish(bob, *[NEWS] * 15)
            await publish(ann, *[NEWS] * 14)  # long before it looks
            found, page = await read_all(bob, NEWS, first - 1)
            assert page.continuous
            assert len(found) >= 29


async def test_another_number_of_partitions_refuses_to_start_and_says_why(kept: Deployment) -> None:
    async with kept.node():
        pass
    stranger = open_broker(kept.settings(partitions=8))
    with pytest.raises(ConfigError, match="this deployment has 16 and this node 8; messages would be looked for in"):
        await stranger.start()
    await stranger.close()


# ---------------------------------------------------------------- what changes


async def test_what_expired_before_retention_was_raised_is_not_taken_for_whole(kept: Deployment) -> None:
    async with kept.node(**ages(1), partitions=1) as (broker, watcher):
        await follow(broker, NEWS)
        before = watcher.told[0][2]
        (old,) = await publish(broker, NEWS)
        await gone(kept, broker, NEWS)
    async with kept.node(**ages(900), partitions=1) as (broker, _):
        for _ in range(2):  # before anything was published under the new policy, and after
            page = await broker.read(NEWS, before, 10)
            assert not page.continuous, "what was there had expired"
            assert not (await broker.read(NEWS, old - 1, 10)).continuous
            (new,) = await publish(broker, NEWS)
            assert (await broker.read(NEWS, new - 1, 10)).messages
        assert (await broker.read(NEWS, new, 10)).continuous
        (other,) = await publish(broker, "topic:other")
        assert (await broker.read("topic:quiet", other, 10)).continuous


async def test_lowered_retention_is_believed_at_once_and_raised_again_later(kept: Deployment) -> None:
    async with kept.node(**ages(900)) as (broker, _):
        (old,) = await publish(broker, NEWS)
    async with kept.node(**ages(1)) as (broker, _):
        await asyncio.sleep(1.2)
        assert not (await broker.read("topic:unused", old, 10)).continuous
        (young,) = await publish(broker, NEWS)
        assert (await broker.read(NEWS, young, 10)).continuous
    async with kept.node(**ages(900)) as (broker, _):
        assert not (await broker.read("topic:unused", old, 10)).continuous
        assert (await broker.read(NEWS, young, 10)).continuous


async def test_a_reader_that_is_owed_more_than_before_is_told_of_what_it_missed() -> None:
    latest, all_of_them = ({"channels": {"room": {"keyed": True, "history_size": 3, "slow": slow}}}
                           for slow in ("latest", "catch_up"))  # fmt: skip
    async with opened(RedisAlone()) as store:
        async with store.node(**latest) as (broker, _):
            offsets = [(await broker.publish(draft("room:1", key="k"))).offset for _ in range(10)]
            assert (await broker.read("room:1", offsets[0], 10)).continuous
        async with store.node(**all_of_them) as (broker, _):
            assert not (await broker.read("room:1", offsets[0], 10)).continuous
            assert (await broker.read("room:1", offsets[-1], 10)).continuous
            new = [(await broker.publish(draft("room:1", key="k"))).offset for _ in range(3)]
            assert not (await broker.read("room:1", offsets[0], 10)).continuous
            page = await broker.read("room:1", offsets[-1], 10)
            assert page.continuous
            assert [message.offset for message in page.messages] == new
        async with store.node(**latest | {"channels": {"room": {"keyed": False}}}) as (broker, _):
            assert not (await broker.read("room:1", new[0], 10)).continuous
            assert (await broker.read("room:1", new[-1], 10)).continuous


async def test_a_rewound_record_of_policies_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "AGREE", 0.2)
    async with opened(RedisAlone()) as store, store.node(**ages(900)) as (broker, _):
        await publish(broker, NEWS)
        with store.server.client() as client:
            meta: Any = client.hgetall("ringcast:meta")
        async with store.node(**ages(60)) as (other, _):
            await publish(other, NEWS)
            with store.server.client() as client:  # as a failover of the server that holds it, alone, would
                client.delete("ringcast:meta")
                client.hset("ringcast:meta", mapping=meta)
            await publish(other, NEWS, "topic:other")
            await publish(broker, NEWS, "topic:other")
            with store.server.client() as client:
                client.delete("ringcast:meta")
            await publish(broker, NEWS, *(f"topic:{number}" for number in range(30)))
            await publish(other, NEWS, *(f"topic:{number}" for number in range(30)))


@pytest.mark.parametrize("record", [b"{}", b"[", b'{"default": {"slow": "sometimes"}}'])
async def test_a_record_that_cannot_be_read_is_said_and_proves_nothing(
    record: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "AGREE", 0.2)
    async with opened(RedisAlone()) as store, store.node(partitions=1) as (broker, _):
        (first,) = await publish(broker, NEWS)
        with store.server.client() as client:
            client.hset("ringcast:meta", mapping={"policy": 1 << 52, f"policy:{1 << 52}": record})
            client.hset(redis_store.Names("ringcast", 1).part(0), "policy", 1 << 52)
        assert not (await broker.read(NEWS, first - 1, 10)).continuous
        (second,) = await publish(broker, NEWS)
        assert "cannot be read, and this node's count from now on" in caplog.text
        assert not (await broker.read(NEWS, first - 1, 10)).continuous
        assert (await broker.read(NEWS, second, 10)).continuous
        assert (await broker.read(NEWS, first, 10)).continuous  # where the unreadable one ended


async def test_a_record_of_another_release_is_read_as_far_as_it_goes() -> None:
    found = policies.decode(7, b'{"default": {"history_ttl": 60.0, "colour": "red"}, "room": {"keyed": true}}')
    assert found is not None
    assert (found.of("topic:news").history_ttl, found.of("topic:news").history_size) == (60.0, 1000)
    assert (found.of("room:1").keyed, found.of("room:1").history_ttl) == (True, 900.0)


async def test_a_retention_that_is_longer_than_time_keeps_everything() -> None:
    async with opened(RedisAlone()) as store, store.node(**policy(history_ttl="36500d")) as (broker, _):
        offsets = await publish(broker, *[NEWS] * 100)
        found, page = await read_all(broker, NEWS, offsets[0])
        assert (page.continuous, found) == (True, offsets[1:])


async def test_policies_beyond_those_remembered_raise_the_floor() -> None:
    async with opened(RedisAlone()) as store:
        async with store.node(**policy(history_ttl=900), partitions=1) as (broker, _):
            (first,) = await publish(broker, NEWS)
        for number in range(12):
            async with store.node(**policy(history_ttl=901 + number), partitions=1) as (broker, _):
                assert (await broker.read(NEWS, first, 100)).continuous is (number < 10), number
                (last,) = await publish(broker, NEWS)
                assert (await broker.read(NEWS, last, 100)).continuous
        with store.server.client() as client:
            part: Any = client.hgetall(redis_store.Names("ringcast", 1).part(0))
            meta: Any = client.hgetall("ringcast:meta")
        assert len(part[b"eras"].split()) == 8
        assert len([field for field in meta if field.startswith(b"policy:")]) == 9


# ---------------------------------------------------------------- clients that come back, whatever changes


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, 30))])
async def test_retention_that_goes_up_and_down_never_misses_silently(kept: Deployment, seed: int) -> None:
    """Every acknowledged publish against what clients that come back with a position are told."""
    dice = random.Random(seed)
    channels = [f"topic:{number}" for number in range(4)]
    sent: dict[str, list[int]] = {channel: [] for channel in channels}
    positions: dict[str, list[int]] = {channel: [] for channel in channels}
    resets = reads = 0
    async with AsyncExitStack() as stack:
        nodes: list[tuple[Broker, AsyncExitStack]] = []
        for _ in range(40):
            what = dice.random()
            if what < 0.2 or not nodes:
                ttl, size = dice.choice([1, 1, 2, 900]), dice.choice([2, 5, 1000])
                own = await stack.enter_async_context(AsyncExitStack())
                changes = policy(history_ttl=ttl, history_size=size)
                broker, _ = await own.enter_async_context(kept.node(**changes, partitions=2))
                nodes.append((broker, own))
                if len(nodes) > 2:
                    await nodes.pop(0)[1].aclose()
            broker, _ = dice.choice(nodes)
            if what < 0.6:
                for channel in dice.choices(channels, k=dice.randrange(6)):
                    sent[channel] += await publish(broker, channel)
                    positions[channel].append(sent[channel][-1])
            elif what < 0.7:
                await asyncio.sleep(dice.choice([0.2, 0.6, 1.1]))
            await expire(kept)
            channel = dice.choice(channels)
            for since in [*dice.sample(positions[channel], min(3, len(positions[channel]))), *positions[channel][-1:]]:
                found, page = await read_all(broker, channel, since, limit=3)
                reads += 1
                resets += not page.continuous
                if page.continuous:
                    assert found == [offset for offset in sent[channel] if offset > since], (channel, since)
                positions[channel].append(page.top)  # as a client that stays is told
    assert reads > resets
