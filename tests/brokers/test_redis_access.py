"""Reaching Redis with few rights and over TLS: one server, Sentinel and Cluster, as docs/brokers.md describes it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.brokers import open_broker
from gateway.brokers.base import Broker
from gateway.settings import ConfigError, Settings
from tests.support.broker_steps import NEWS, draft, follow, publish, read_all
from tests.support.certificates import Certificate
from tests.support.deployments import Deployment, RedisAlone, RedisClustered, RedisWatched, Watcher
from tests.support.redis import RedisCluster, RedisSentinel, RedisServer

PAGE = Path(__file__).parents[2] / "docs/brokers.md"
KINDS = [
    "redis",
    pytest.param("redis+cluster", marks=pytest.mark.chaos),
    pytest.param("redis+sentinel", marks=pytest.mark.chaos),
]
KEYED: dict[str, Any] = {"channels": {"state": {"keyed": True, "slow": "latest", "history_bytes": 2000}}}


@asynccontextmanager
async def deployed(kind: str, tls: Certificate | None = None, **options: Any) -> AsyncIterator[Deployment]:
    deployment: Deployment
    if kind == "redis":
        deployment = RedisAlone()
        deployment.server = RedisServer(tls=tls)
        start = deployment.server.start
    elif kind == "redis+cluster":
        deployment = RedisClustered()
        deployment.cluster = RedisCluster(tls=tls)
        start = deployment.cluster.start  # type: ignore[assignment]
    else:
        deployment = RedisWatched()
        deployment.sentinel = RedisSentinel(*options.pop("config", ()), tls=tls, **options)
        start = deployment.sentinel.start  # type: ignore[assignment]
    try:
        await asyncio.to_thread(start)
        yield deployment
    finally:
        await deployment.close()


def servers_of(deployment: Deployment) -> list[RedisServer]:
    if isinstance(deployment, RedisAlone):
        return [deployment.server]
    if isinstance(deployment, RedisClustered):
        return deployment.cluster.servers
    assert isinstance(deployment, RedisWatched)
    return [deployment.sentinel.master, deployment.sentinel.replica]


async def everything(broker: Broker, watcher: Watcher) -> None:
    """All that a node does with its store."""
    channels = [NEWS, *(f"topic:{number}" for number in range(20))]
    await follow(broker, *channels)
    offsets = await publish(broker, *channels)
    for offset in offsets:
        await watcher.knows(offset)
    once = draft(id="7", principal="key:a", idempotent=True)
    assert not (await broker.publish(once)).duplicate
    assert (await broker.publish(once)).duplicate
    await broker.publish(draft("state:1", b'"%b"' % (b"x" * 1500), key="long", version=(1,)))
    await broker.publish(draft("state:1", b'"%b"' % (b"x" * 1500), key="long", version=(2,)))
    await follow(broker, "state:1")
    await broker.publish(draft("state:1", key="short", ttl=0.1))
    await watcher.until(lambda: any(message.deleted for message in watcher.messages("state:1")))
    assert [message.key for message in (await broker.snapshot("state:1")).messages] == ["long"]
    await read_all(broker, "state:1", 0)
    assert (await read_all(broker, NEWS, offsets[0] - 1))[0][0] == offsets[0]
    await broker.check([broker.partition(channel) for channel in channels])
    await broker.unsubscribe([broker.partition(channel) for channel in channels])


# ---------------------------------------------------------------- rights


def documented_rule() -> str:
    match = re.search(r"```acl\nuser ringcast (.*?)\n```", PAGE.read_text(), re.DOTALL)
    assert match is not None
    return match[1].replace(" \\\n", " ")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_documented_rights_are_enough_and_none_is_too_many(kind: str) -> None:
    rule = documented_rule().replace(">change-me", ">s3cret/@").split()
    async with deployed(kind) as deployment:
        for server in servers_of(deployment):
            with server.client() as client:
                client.execute_command("ACL", "SETUSER", "ringcast", *rule)
                client.config_resetstat()
        scheme, _, rest = deployment.url.partition("://")
        url = f"{scheme}://ringcast:s3cret%2F%40@{rest}"
        denied: list[Any] = []
        used: set[str] = set()
        try:
            async with deployment.node(broker=url, **KEYED) as (broker, watcher):
                await everything(broker, watcher)
        finally:
            for server in servers_of(deployment):
                with server.client() as client:
                    denied += [(entry["reason"], entry["object"]) for entry in client.acl_log()]
                    used |= {name.removeprefix("cmdstat_").replace("|", " ") for name in client.info("commandstats")}
            assert not denied
    granted = {word[1:].replace("|", " ") for word in rule if word.startswith("+")}
    if kind == "redis":
        clusters = {"readonly", "asking", "cluster slots", "ssubscribe", "sunsubscribe", "spublish", "command"}
        seldom = {"ping", "select", "del"}  # after silence, for another database, behind a sweep that was cut
        assert granted - clusters - seldom - used - of_scripts() == set(), "no node needs these"
        assert of_scripts() <= granted


def of_scripts() -> set[str]:
    """The commands that the scripts call by name, also where this test does not come by."""
    scripts = "".join(path.read_text() for path in (PAGE.parents[1] / "gateway/brokers").glob("*.lua"))
    return {name.lower() for name in re.findall(r"redis\.call\('([A-Z]+)'", scripts)}


async def test_a_store_that_would_evict_is_refused_though_config_is_forbidden() -> None:
    async with deployed("redis") as deployment:
        with servers_of(deployment)[0].client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.execute_command("ACL", "SETUSER", "ringcast", *documented_rule().split())
        url = deployment.url.replace("://", "://ringcast:change-me@")
        broker = open_broker(Settings(broker=url))
        with pytest.raises(ConfigError, match="noeviction"):
            await broker.start()
        await broker.close()


async def test_a_wrong_password_is_told_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    async with deployed("redis") as deployment:
        with servers_of(deployment)[0].client() as client:
            client.execute_command("ACL", "SETUSER", "ringcast", *documented_rule().split())
        broker = open_broker(Settings(broker=deployment.url.replace("://", "://ringcast:wr0ng@")))
        with pytest.raises(ConfigError, match="does not let this node in") as refused:
            await broker.start()
        await broker.close()
        assert "wr0ng" not in str(refused.value) + caplog.text


# ---------------------------------------------------------------- TLS


@pytest.mark.parametrize("kind", KINDS)
async def test_tls_is_spoken_with_certificates_on_both_sides(kind: str, tmp_path: Path) -> None:
    certificate = await asyncio.to_thread(Certificate.make, tmp_path)
    async with deployed(kind, tls=certificate) as deployment:
        url = f"{deployment.url}?tls=true&tls_ca={certificate.file}"
        ours = f"{url}&tls_cert={certificate.file}&tls_key={certificate.key}"
        async with deployment.node(broker=ours, **KEYED) as (broker, watcher):
            await everything(broker, watcher)
        for lacking in (deployment.url, f"{deployment.url}?tls=true", url):
            stranger = open_broker(deployment.settings(broker=lacking))
            await stranger.start()
            running = asyncio.create_task(stranger.run(Watcher()))
            await asyncio.sleep(0.2)
            assert not stranger.connected
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await stranger.close()


@pytest.mark.chaos
async def test_sentinels_may_ask_for_a_password_of_their_own() -> None:
    async with deployed("redis+sentinel", config=["requirepass watch"], password="watch") as deployment:
        async with deployment.node(broker=f"{deployment.url}?sentinel_password=watch") as (broker, watcher):
            await follow(broker, NEWS)
            await watcher.knows((await publish(broker, NEWS))[0])
        broker = open_broker(deployment.settings())
        await broker.start()
        assert not broker.connected
        await broker.close()
