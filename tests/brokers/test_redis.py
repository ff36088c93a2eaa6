"""What is Redis's own: where its keys lie, which servers it refuses, and that it never hangs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio.client import Pipeline

from gateway.brokers import open_broker, redis_servers
from gateway.brokers.redis import RedisBroker
from gateway.brokers.redis_servers import Url
from gateway.brokers.redis_store import SLOTS, tags
from gateway.errors import Problem
from gateway.settings import ConfigError, Settings
from tests.brokers.conftest import opened
from tests.support.broker_steps import NEWS, draft, follow, publish, publish_when_back, read_all
from tests.support.cable import Cable
from tests.support.deployments import RedisAlone, RedisWatched, Watcher
from tests.support.redis import RedisServer

KEYED: dict[str, Any] = {"channels": {"room": {"keyed": True}}}


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


async def test_the_first_look_at_a_partition_misses_nothing_that_others_publish_meanwhile() -> None:
    store = RedisAlone()
    await store.open()
    try:
        async with store.node(**KEYED) as (ann, _), store.node(**KEYED) as (bob, _):
            assert isinstance(ann, RedisBroker)
            begin = ann._calls.one
            published: list[int] = []

            async def one(call: Any) -> Any:
                published.append((await bob.publish(draft("room:1", key="k"))).offset)
                return await begin(call)

            ann._calls.one = one  # type: ignore[method-assign]
            page = await ann.read("room:1", 0, 10)
            assert [message.offset for message in page.messages] == published
            with store.server.client() as client:
                client.flushall()
            snapshot = await ann.snapshot("room:1")
            assert [message.offset for message in snapshot.messages] == published[1:]
    finally:
        await store.close()


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


async def test_a_server_that_became_a_replica_is_left() -> None:
    """It goes on answering, ends no connection, and refuses whatever is written."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with RedisServer(*at_once) as first, RedisServer(*at_once) as second:
        async with Cable(first.port) as cable:
            broker = open_broker(Settings(broker=f"redis://127.0.0.1:{cable.port}", partitions=16))
            running = asyncio.create_task(broker.run(Watcher()))
            try:
                await publish_when_back(broker, NEWS)
                await asyncio.to_thread(first.hand_over, second)
                cable.far = second.port
                offset = await publish_when_back(broker, NEWS)
                assert [message.offset for message in (await broker.read(NEWS, offset - 1, 1)).messages] == [offset]
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await broker.close()


@pytest.mark.chaos
async def test_a_new_master_is_found_while_the_old_one_still_takes_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Sentinels tell the old master only after 10 seconds, and all that it takes until then is lost."""
    monkeypatch.setattr(redis_servers, "WATCH", 2.0)  # so that another partition is followed before that is due
    store = RedisWatched()
    await store.open()
    try:
        async with store.node() as (broker, watcher):
            assert isinstance(broker, RedisBroker)
            await follow(broker, NEWS)
            await publish(broker, NEWS)
            servers: Any = broker._servers
            pool = servers.client.connection_pool
            used = await pool.get_connection()
            failing_over = asyncio.create_task(asyncio.to_thread(store.sentinel.fail_over, in_good_order=False))
            new = store.sentinel.replica
            async with asyncio.timeout(20):
                while (await servers._sentinel.discover_master(store.sentinel.name))[1] != new.port:  # noqa: ASYNC110 - it has no event for us
                    await asyncio.sleep(0.05)
                with suppress(Problem):
                    await follow(broker, "topic:other")  # where it is announced from now on: at the new master
                await asyncio.sleep(4)
            assert not failing_over.done(), "the old master was told already: nothing is shown"
            offsets = [await publish_when_back(broker, NEWS)]
            await pool.release(used)  # which was in use all the while, and is the first to be used again
            offsets += await publish(broker, NEWS, NEWS)
            await watcher.knows(offsets[-1], within=3)  # while the old one still takes writes
            await failing_over
            found, _ = await read_all(broker, NEWS, offsets[0] - 1)
            assert found == offsets
    finally:
        await store.close()


async def test_a_subscription_that_was_given_up_can_be_asked_for_again_at_once() -> None:
    """The second wait for the same subject is not cancelled by the first, nor is the partition deaf afterwards."""
    async with opened(RedisAlone()) as store, store.node() as (broker, watcher):
        store.server.pause()
        try:
            for _ in range(2):  # the second before the connection is given up for its silence
                with pytest.raises(Problem) as refused:
                    await follow(broker, NEWS)
                assert refused.value.code == "unavailable"
        finally:
            store.server.resume()
        async with asyncio.timeout(20):
            while True:
                try:
                    await follow(broker, NEWS)
                    break
                except Problem:
                    await asyncio.sleep(0.05)
        await watcher.knows(await publish_when_back(broker, NEWS))


async def test_what_was_told_already_stays_followed_where_the_rest_of_a_batch_fails() -> None:
    async with opened(RedisAlone()) as store, store.node(partitions=1024) as (broker, watcher):
        assert isinstance(broker, RedisBroker)
        partition, run = broker.partition(NEWS), broker._calls.run

        async def once(calls: Any) -> Any:
            if any(number == partition for kind, number, _ in watcher.told):
                broker._calls.run = run  # type: ignore[method-assign]
                raise TimeoutError("the store is away")
            return await run(calls)

        broker._calls.run = once  # type: ignore[method-assign]
        with pytest.raises(Problem):
            await broker.subscribe([partition, *(number for number in range(1024) if number != partition)])
        assert broker._calls.run == run, "part of the batch was answered"
        await watcher.knows((await broker.publish(draft(NEWS))).offset)


@pytest.mark.parametrize("verb", ["check", "read"])
async def test_whoever_asks_the_store_again_and_again_can_be_ended(
    server: RedisServer, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the library answers the cancellation by trying once more, with success."""
    broker = RedisBroker(Settings(broker=server.url))
    running = asyncio.create_task(broker.run(Watcher()))
    try:
        await broker.start()
        asks, real = asyncio.Event(), Pipeline.execute

        async def swallowing(pipeline: Pipeline, raise_on_error: bool = True) -> Any:
            if asyncio.current_task() is asking and not asks.is_set():
                asks.set()
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)
            return await real(pipeline, raise_on_error)

        async def ask() -> None:
            while True:
                await (broker.check([0]) if verb == "check" else broker.read(NEWS, 0, 10))

        monkeypatch.setattr(Pipeline, "execute", swallowing)
        asking = asyncio.create_task(ask())
        try:
            await asks.wait()
            asking.cancel()
            _, late = await asyncio.wait([asking], timeout=5)
            assert not late, "it goes on"
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await broker.close()


@pytest.mark.parametrize("verb", ["_claim", "_ask"])
async def test_a_reader_that_is_ended_while_it_connects_again_ends(server: RedisServer, verb: str) -> None:
    """redis-py may answer a cancellation by trying once more, and that may succeed: then it looks like none."""
    broker = RedisBroker(Settings(broker=server.url))
    running = asyncio.create_task(broker.run(Watcher()))
    connects, real = asyncio.Event(), getattr(broker, verb)

    async def swallowing(*asked: Any) -> None:
        connects.set()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await real(*asked)

    try:
        async with asyncio.timeout(10):
            while not broker.connected:  # noqa: ASYNC110 - it is a property
                await asyncio.sleep(0.01)
            setattr(broker, verb, swallowing)
            for live in broker._live.values():
                live.close()
            await connects.wait()
        running.cancel()
        _, late = await asyncio.wait([running], timeout=5)
        assert not late, "the reader goes on"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await broker.close()
