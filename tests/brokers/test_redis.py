"""What is Redis's own: where its keys lie, which servers it refuses, and that it never hangs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from gateway.brokers import open_broker
from gateway.brokers.redis_servers import Url
from gateway.brokers.redis_store import SLOTS, tags
from gateway.errors import Problem
from gateway.settings import ConfigError, Settings
from tests.support.broker_steps import NEWS, draft, follow, publish, publish_when_back
from tests.support.deployments import RedisAlone
from tests.support.redis import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("servers", range(3, 17))
def test_partitions_spread_evenly_over_a_cluster_of_any_size(servers: int) -> None:
    from redis.crc import key_slot

    slots = [key_slot(b"{" + tag + b"}") for tag in tags(1024)]
    shares = Counter(slot * servers // SLOTS for slot in slots)
    assert max(shares.values()) - min(shares.values()) <= 2
    assert len(set(tags(1024))) == 1024


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host:port", "is not host:port"),
        ("redis://host/zero", "is not the number of a database"),
        ("redis+sentinel://host:26379", "name the master"),
        ("redis://host?colour=red", "'colour' is no option"),
        ("rediss://host?tls_ca=/nowhere", "TLS files cannot be used"),
    ],
)
def test_a_url_that_cannot_work_is_refused_in_a_sentence(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Url.parse(url)


def test_a_url_is_read_whole() -> None:
    url = Url.parse("redis+sentinel://ann:s%20ecret@a:1,[::1]:2,c/main?prefix=shop")
    assert (url.kind, url.hosts, url.path) == ("redis+sentinel", (("a", 1), ("::1", 2), ("c", 26379)), "main")
    assert (url.username, url.password, url.prefix, url.tls) == ("ann", "s ecret", "shop", None)


async def test_a_store_that_would_evict_is_refused(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            broker = open_broker(Settings(broker=server.url))
            with pytest.raises(ConfigError, match="noeviction"):
                await broker.start()
            await broker.close()
        finally:
            client.config_set("maxmemory-policy", "noeviction")


async def test_another_number_of_partitions_is_refused(server: RedisServer) -> None:
    first = open_broker(Settings(broker=f"{server.url}?prefix=p", partitions=16))
    await first.start()
    await first.close()
    second = open_broker(Settings(broker=f"{server.url}?prefix=p", partitions=32))
    with pytest.raises(ConfigError, match="this deployment has 16 and this node 32"):
        await second.start()
    await second.close()


async def test_a_server_that_does_not_answer_is_told_within_bounds_and_found_again() -> None:
    store = RedisAlone()
    await store.open()
    try:
        async with store.node() as (broker, watcher):
            await follow(broker, NEWS)
            await publish(broker, NEWS)
            store.server.pause()
            began = time.monotonic()
            for verb in (broker.publish(draft()), broker.read(NEWS, 0, 1), broker.check([])):
                with pytest.raises(Problem) as refused:
                    await verb
                assert refused.value.code == "unavailable"
                assert refused.value.retry_after
            assert time.monotonic() - began < 15
            began = time.monotonic()
            told = await asyncio.gather(*(broker.publish(draft()) for _ in range(3000)), return_exceptions=True)
            assert {problem.code for problem in told if isinstance(problem, Problem)} == {"unavailable"}
            assert all(isinstance(problem, Problem) for problem in told)
            assert time.monotonic() - began < 10, "they were told one batch after the other"
            async with asyncio.timeout(10):
                while broker.connected:  # noqa: ASYNC110 - it is a property, as /readyz asks it
                    await asyncio.sleep(0.05)
            store.server.resume()
            offset = await publish_when_back(broker, NEWS)
            await watcher.knows(offset)
    finally:
        await store.close()
