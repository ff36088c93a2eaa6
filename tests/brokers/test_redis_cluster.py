"""What is a Redis Cluster's own: partitions of several slots at one server, and servers that fail each by itself."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator

import pytest
from redis.exceptions import RedisError

from gateway.brokers.base import Broker
from gateway.brokers.redis import RedisBroker
from gateway.errors import Problem
from tests.support.broker_steps import draft, follow, publish, publish_when_back
from tests.support.deployments import RedisClustered
from tests.support.redis import RedisCluster, RedisServer


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisClustered]:
    deployment = RedisClustered()
    deployment.cluster = RedisCluster()
    deployment.cluster.start()
    yield deployment
    deployment.cluster.close()


def by_server(deployment: RedisClustered, broker: Broker) -> dict[RedisServer, str]:
    """A channel at each server."""
    assert isinstance(broker, RedisBroker)
    found: dict[RedisServer, str] = {}
    for number in range(200):
        slot = broker.partition(f"topic:{number}") * 16384 // deployment.partitions
        address = broker._servers.server_of(slot)
        server = next(server for server in deployment.cluster.servers if address.endswith(f":{server.port}"))
        found.setdefault(server, f"topic:{number}")
    return found


async def test_partitions_of_many_slots_are_followed_and_left_at_once(cluster: RedisClustered) -> None:
    async with cluster.node() as (broker, watcher):
        channels = [f"topic:{number}" for number in range(60)]
        await follow(broker, *channels)
        for channel, offset in zip(channels, await publish(broker, *channels), strict=True):
            await watcher.knows(offset)
            assert [message.offset for message in watcher.messages(channel)] == [offset]
        await broker.unsubscribe({broker.partition(channel) for channel in channels})
        told = len(watcher.told)
        await publish(broker, *channels)
        await follow(broker, *channels)
        assert {kind for kind, _, _ in watcher.told[told:]} == {"watermark"}


async def test_a_server_that_does_not_answer_holds_up_no_publish_to_the_others(cluster: RedisClustered) -> None:
    async with cluster.node() as (broker, _):
        channels = by_server(cluster, broker)
        assert len(channels) == 3
        await publish(broker, *channels.values())
        silent, *others = channels
        silent.pause()
        try:
            stuck = [asyncio.create_task(broker.publish(draft(channels[silent]))) for _ in range(500)]
            began = time.monotonic()
            for _ in range(10):
                await asyncio.gather(*(broker.publish(draft(channels[server])) for server in others))
            assert not any(task.done() for task in stuck)
            assert time.monotonic() - began < 1.5, "they waited for the silent one"
            told = await asyncio.gather(*stuck, return_exceptions=True)
            assert {problem.code for problem in told if isinstance(problem, Problem)} == {"unavailable"}
            began = time.monotonic()
            for _ in range(50):
                with pytest.raises(Problem, match="does not answer"):
                    await broker.publish(draft(channels[silent]))
            assert time.monotonic() - began < 1
        finally:
            silent.resume()
        await publish_when_back(broker, channels[silent])
    await asyncio.to_thread(cluster.cluster.agreed)


async def test_closing_while_a_server_is_away_leaves_no_connection_open(cluster: RedisClustered) -> None:
    """redis-py takes itself for closed once a connection was lost; an open one left behind is a ResourceWarning."""
    async with cluster.node() as (broker, _):
        assert isinstance(broker, RedisBroker)
        channels = by_server(cluster, broker)
        await publish(broker, *channels.values())
        gone = next(iter(channels))
        gone.kill()
        with pytest.raises(RedisError):
            await broker._calls.load()  # as after a reconnect
    del broker
    gc.collect()  # what is left open says so now, and pytest makes a failure of it
    await asyncio.to_thread(gone.start)
    await asyncio.to_thread(cluster.cluster.agreed)
