"""Running on NATS: servers that are away, what nodes must agree on, clusters and credentials."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path

import pytest

from gateway.brokers import open_broker
from gateway.brokers.nats import PUBLISH_WITHIN
from gateway.errors import Problem
from gateway.settings import ConfigError
from tests.support.broker_steps import NEWS, draft, follow, publish, publish_when_back, read_all
from tests.support.certificates import Certificate
from tests.support.nats import NatsAlone, NatsCluster, NatsServer

# ---------------------------------------------------------------- the store is away


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_publishing_waits_within_bounds_and_then_says_so_at_once(alone: NatsAlone, how: str) -> None:
    async with alone.node() as (broker, watcher):
        await follow(broker, NEWS)
        await publish(broker, NEWS)
        server = alone.servers[0]
        getattr(server, how)()
        began = time.monotonic()
        with pytest.raises(Problem) as refused:
            await broker.publish(draft())
        assert (refused.value.code, refused.value.retry_after) == ("unavailable", 1)
        assert time.monotonic() - began < PUBLISH_WITHIN + 1
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(Problem):
                await broker.publish(draft())
        assert time.monotonic() - began < 0.5
        while broker.connected:
            assert time.monotonic() - began < 10
            await asyncio.sleep(0.05)
        for verb in (broker.read(NEWS, 0, 1), broker.snapshot(NEWS), broker.check([0]), broker.subscribe([3])):
            with pytest.raises(Problem, match="does not answer"):
                await verb
        await broker.unsubscribe([3])
        if how == "kill":
            await asyncio.to_thread(server.start)
        else:
            server.resume()
        await watcher.knows(await publish_when_back(broker, NEWS))


async def test_a_node_that_starts_before_its_store_finds_it(alone: NatsAlone) -> None:
    server = alone.servers[0]
    server.kill()
    broker = open_broker(alone.settings())
    await broker.start()  # that the store is away is no error
    await asyncio.to_thread(server.start)
    async with alone.node() as (broker, watcher):
        await follow(broker, NEWS)
        await watcher.knows((await publish(broker, NEWS))[0])


async def test_a_message_larger_than_the_server_takes_is_refused_and_nothing_breaks(alone: NatsAlone) -> None:
    async with alone.node() as (broker, watcher):
        await follow(broker, NEWS)
        with pytest.raises(Problem) as refused:
            await broker.publish(draft(data=b'"' + b"x" * (4 << 20) + b'"'))
        assert refused.value.code == "too_large"
        await watcher.knows((await publish(broker, NEWS))[0])
        assert not watcher.gaps()


# ---------------------------------------------------------------- what nodes must agree on


async def test_another_number_of_partitions_refuses_to_start(alone: NatsAlone) -> None:
    async with alone.node():
        pass
    with pytest.raises(ConfigError, match="this deployment has 16 and this node 8"):
        await open_broker(alone.settings(partitions=8)).start()
    other = f"{alone.url}/?prefix=other"
    await open_broker(alone.settings(partitions=8, broker=other)).start()


async def test_another_policy_is_warned_of_and_the_newest_wins(
    alone: NatsAlone, caplog: pytest.LogCaptureFixture
) -> None:
    async with alone.node(channels={"default": {"history_size": 10}}) as (broker, _):
        offsets = await publish(broker, *[NEWS] * 30)
    with caplog.at_level(logging.WARNING, "ringcast.nats"):
        async with alone.node(channels={"default": {"history_size": 100}}) as (broker, _):
            assert "set up for another policy" in caplog.text
            page = await broker.read(NEWS, offsets[2], 100)
            assert not page.continuous  # though the channel holds far less than it may now
            assert (await broker.read(NEWS, offsets[-3], 100)).continuous
            await publish(broker, *[NEWS] * 50)
            assert len((await read_all(broker, NEWS, offsets[-1]))[0]) == 50
    caplog.clear()
    async with alone.node(channels={"default": {"history_size": 100}}):
        assert "another policy" not in caplog.text


async def test_a_namespace_that_becomes_keyed_shows_no_old_position(alone: NatsAlone) -> None:
    async with alone.node(partitions=1) as (broker, _):
        (old,) = await publish(broker, "room:1")
    async with alone.node(partitions=1, channels={"room": {"keyed": True}}) as (broker, _):
        await follow(broker, "room:1")
        assert not (await broker.read("room:1", old, 10)).continuous
        (new,) = await publish(broker, "room:1")
        assert (await broker.read("room:1", new, 10)).continuous
        assert new > old


async def test_one_replica_in_a_cluster_is_refused(cluster: NatsCluster) -> None:
    with pytest.raises(ConfigError, match="replicas=1 is for a single server"):
        await open_broker(cluster.settings(broker=f"{cluster.url}/?replicas=1")).start()


async def test_a_cluster_keeps_three_replicas(cluster: NatsCluster) -> None:
    async with cluster.node() as (_, _), cluster.servers[0].client() as client:
        for family in "lk":
            await cluster.leader(f"rc-{family}3")  # else nobody may answer yet
            answer = await client.request(f"$JS.API.STREAM.INFO.rc-{family}3", b"", timeout=5)
            config = json.loads(answer.data)["config"]
            assert (config["num_replicas"], config["allow_direct"], config["deny_purge"]) == (3, True, True)


@pytest.mark.chaos
async def test_a_cluster_serves_on_without_any_one_of_its_servers(cluster: NatsCluster) -> None:
    async with cluster.node() as (broker, watcher):
        await follow(broker, NEWS)
        offsets = await publish(broker, NEWS)
        for server in cluster.servers:
            server.kill()
            offsets.append(await publish_when_back(broker, NEWS))
            await watcher.knows(offsets[-1])
            await asyncio.to_thread(server.start)
        found, page = await read_all(broker, NEWS, offsets[0])
        assert page.continuous
        assert set(offsets[1:]) <= set(found)


# ---------------------------------------------------------------- credentials


async def test_a_password_lets_in_and_a_wrong_one_is_said(caplog: pytest.LogCaptureFixture) -> None:
    alone = NatsAlone()
    server = NatsServer(password="s3cret/@")
    alone.servers = [server]
    await asyncio.to_thread(server.start)
    try:
        right = f"nats://app:s3cret%2F%40@127.0.0.1:{server.port}"
        async with alone.node(broker=right) as (broker, watcher):
            await follow(broker, NEWS)
            await watcher.knows((await publish(broker, NEWS))[0])
        for login in ("app:wrong@", ""):
            with pytest.raises(ConfigError, match="does not let this node in") as refused:
                await open_broker(alone.settings(broker=f"nats://{login}127.0.0.1:{server.port}")).start()
            assert "wrong" not in str(refused.value)
        assert "s3cret" not in caplog.text
    finally:
        await alone.close()


async def test_tls_is_spoken_and_a_server_nobody_vouches_for_refused(tmp_path: Path) -> None:
    certificate = await asyncio.to_thread(Certificate.make, tmp_path)
    alone = NatsAlone()
    server = NatsServer(tls={"cert_file": certificate.file, "key_file": certificate.key})
    alone.servers = [server]
    await asyncio.to_thread(server.start)
    try:
        url = f"tls://127.0.0.1:{server.port}"
        async with alone.node(broker=f"{url}/?tls_ca={certificate.file}") as (broker, watcher):
            await follow(broker, NEWS)
            await watcher.knows((await publish(broker, NEWS))[0])
        stranger = open_broker(alone.settings(broker=url))
        await stranger.start()
        assert not stranger.connected
    finally:
        await alone.close()
