"""Nodes know each other: they agree on the ring, notice who is gone, and lose nothing where they are wrong."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from gateway.brokers import open_broker
from gateway.cluster import Member
from gateway.identity import NODES
from gateway.message import Draft, new_id, partition_of
from gateway.settings import Settings
from tests.support.clients import TRANSPORTS, connect
from tests.support.command import ringcast
from tests.support.deployments import Watcher
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, token
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer

TTL = 3.0  # seconds; a node tells of itself every second
SEEN = 5.0  # seconds until nodes that were started know each other
ANN = token("ann", ["topic:*"])


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def gateway(redis: RedisServer, name: str, **options: Any) -> Gateway:
    settings = {"node_ttl": f"{TTL:g}s", "drain": "1s", "advertise": f"http://{name}.test:8000", **options}
    return Gateway(broker=redis.url, node=name, **settings)


def seen(node: Gateway) -> dict[str, Any]:
    with node.http() as http:
        told: dict[str, Any] = http.get("/v1/nodes").raise_for_status().json()
    return told


def states(node: Gateway) -> dict[str, str]:
    return {member["node"]: member["state"] for member in seen(node)["nodes"]}


async def agreed(nodes: list[Gateway], *names: str, within: float = SEEN) -> None:
    """Wait until the ring of each node is made of these."""
    expected = dict.fromkeys(names, "active")
    for node in nodes:
        await node.until(lambda node=node: states(node) == expected, within, f"{names} on a node's ring")  # type: ignore[misc]


@pytest.fixture
def three(redis: RedisServer) -> Iterator[list[Gateway]]:
    with ExitStack() as stack:
        yield [stack.enter_context(gateway(redis, name)) for name in "abc"]


async def test_three_nodes_agree_until_one_is_killed_and_one_drained(three: list[Gateway]) -> None:
    a, b, c = three
    await agreed(three, "a", "b", "c")
    views = [seen(node) for node in three]
    assert len({view["hash"] for view in views}) == 1
    for view in views:
        assert sum(member["home_of"] for member in view["nodes"]) == view["partitions"] == 1024
        assert {member["address"] for member in view["nodes"]} == {f"http://{name}.test:8000" for name in "abc"}
        assert all(member["accept"] > 0 and member["release"] for member in view["nodes"])

    killed = time.monotonic()
    await asyncio.to_thread(c.kill)
    await agreed([a, b], "a", "b", within=TTL + 2)
    assert time.monotonic() - killed < TTL + 2
    assert seen(a)["hash"] == seen(b)["hash"] != views[0]["hash"]

    b.signal(signal.SIGTERM)
    await a.until(lambda: states(a).get("b") != "active", 1.0, "a drained node leaves before its next refresh")
    assert {member["node"]: member["home_of"] for member in seen(a)["nodes"] if member["home_of"]} == {"a": 1024}
    assert await asyncio.to_thread(b.ended) == 0, b.stderr
    await a.until(lambda: states(a) == {"a": "active"}, 1.0, "a node that ended is gone at once")
    assert a.stop() == 0
    for node in three:
        assert not node.complaints(), node.stderr


async def test_a_client_is_told_of_its_home_unless_it_is_there(three: list[Gateway]) -> None:
    await agreed(three, "a", "b", "c")
    user = next(f"u{n}" for n in range(1000) if _home(three[0], f"u{n}") == "b")
    with three[0].http() as http:
        explained = http.get("/v1/route", params={"user": user}).raise_for_status().json()
    assert explained["partition"] == partition_of(f"user:{user}", 1024)
    assert explained["address"] == "http://b.test:8000"
    for node, home in zip(three, ["http://b.test:8000", None, "http://b.test:8000"], strict=True):
        async with await connect("websocket", node.url, token(user, [])) as client:
            assert (await client.frame("welcome")).get("home") == home


def _home(node: Gateway, user: str) -> str:
    with node.http() as http:
        home: str = http.get("/v1/route", params={"user": user}).raise_for_status().json()["home"]
    return home


class Liar:
    """Tells the nodes of others that are not there, and that those which are there are gone."""

    def __init__(self, redis: RedisServer) -> None:
        self.broker = open_broker(Settings(broker=redis.url))
        self.told = 0

    async def lie(self, victims: list[str]) -> None:
        running = asyncio.create_task(self.broker.run(Watcher()))
        try:
            while True:
                if self.broker.connected:
                    ghost = Member("active", 1024, "0", f"http://ghost-{random.randrange(9)}.test", 1)
                    await self._tell(f"ghost-{random.randrange(9)}", msgspec.json.encode(ghost))
                    await self._tell(random.choice(victims), b"null", deleted=True)
                    self.told += 1
                await asyncio.sleep(0.02)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await self.broker.close()

    async def _tell(self, name: str, data: bytes, deleted: bool = False) -> None:
        await self.broker.publish(Draft(NODES, "node", data, new_id(), key=name, deleted=deleted, ttl=TTL))


async def test_nodes_with_random_rings_lose_nothing(redis: RedisServer) -> None:
    with gateway(redis, "a") as a, gateway(redis, "b") as b:
        await agreed([a, b], "a", "b")
        liar = Liar(redis)
        lying = asyncio.create_task(liar.lie(["a", "b"]))
        try:
            await a.until(lambda: any(name.startswith("ghost") for name in states(a)), said="the lie is believed")
            clients = [
                await connect(transport, node.url, ANN, channels=[f"topic:{n}" for n in range(20)])
                for transport in TRANSPORTS for node in (a, b)
            ]  # fmt: skip
            for client in clients:
                await client.joined()
            sent = [
                await asyncio.to_thread(node.publish, f"topic:{n % 20}", n)
                for n, node in enumerate([a, b] * 50)
            ]  # fmt: skip
        finally:
            lying.cancel()
            await asyncio.gather(lying, return_exceptions=True)
        assert liar.told > 10
        expected: dict[str, list[int]] = {}
        for receipt in sent:
            expected.setdefault(receipt["channel"], []).append(receipt["offset"])
        for client in clients:
            got: dict[str, list[int]] = {}
            for frame in await client.messages(len(sent)):
                got.setdefault(frame["channel"], []).append(frame["offset"])
            assert got == expected
            await client.close()


async def test_a_node_with_an_empty_ring_loses_nothing(redis: RedisServer) -> None:
    with gateway(redis, "a", drain_wait="4s") as a:
        await agreed([a], "a")
        async with await connect("websocket", a.url, ANN, channels=["topic:x"]) as client:
            await client.joined()
            a.signal(signal.SIGTERM)
            await a.until(lambda: states(a) == {"a": "draining"}, 2.0)
            assert sum(member["home_of"] for member in seen(a)["nodes"]) == 0
            sent = [await asyncio.to_thread(a.publish, "topic:x", n) for n in range(20)]
            got = await client.messages(20)
            assert [frame["offset"] for frame in got] == [receipt["offset"] for receipt in sent]


async def test_nodes_find_each_other_again_after_the_store_was_away(redis: RedisServer) -> None:
    with gateway(redis, "a") as a, gateway(redis, "b") as b:
        await agreed([a, b], "a", "b")
        await asyncio.to_thread(redis.kill)
        await a.until(lambda: states(a) == {"a": "active"}, TTL + 2, "what is silent is gone, also without a store")
        await asyncio.to_thread(redis.start)
        await agreed([a, b], "a", "b", within=20.0)


async def test_nodes_know_each_other_on_nats() -> None:
    with NatsServer() as nats:
        options: dict[str, Any] = {"broker": nats.url, "node_ttl": f"{TTL:g}s"}
        with Gateway(node="a", **options) as a, Gateway(node="b", **options) as b:
            await agreed([a, b], "a", "b")
            assert seen(a)["hash"] == seen(b)["hash"]
            await asyncio.to_thread(b.kill)
            await agreed([a], "a", within=TTL + 2)
            assert a.stop() == 0, a.stderr
            assert not a.complaints(), a.stderr


async def test_a_node_alone_is_home_to_all() -> None:
    with Gateway(node="a") as a:
        told = seen(a)
        assert states(a) == {"a": "active"}
        assert told["nodes"][0]["home_of"] == told["partitions"]
        async with await connect("sse", a.url, ANN, channels=["topic:x"]) as client:
            await client.joined()
            receipt = await asyncio.to_thread(a.publish, "topic:x", 1)
            await client.messages(1)
            with a.http() as http:
                explained = http.get("/v1/route", params={"channel": "topic:x"}).raise_for_status().json()
        with a.http() as http:
            way = http.get("/openapi.json").json()["components"]["schemas"]["Way"]["properties"]
        assert set(way) == set(explained)
        assert set(way["sessions"]["items"]["properties"]) == set(explained["sessions"][0])
        assert explained["home"] == explained["node"] == "a"
        assert explained["interest"]
        assert explained["watermark"] == explained["top"] == receipt["offset"]
        assert [session["position"] for session in explained["sessions"]] == [receipt["offset"]]
        assert explained["sessions"][0]["live"]


async def test_what_is_explained_is_for_api_keys_and_of_one_channel() -> None:
    with Gateway(node="a") as a:
        with a.http(ANN) as http:
            for path in ("/v1/nodes", "/v1/route?user=ann"):
                assert http.get(path).json()["code"] == "forbidden"
        with a.http() as http:
            for query, code in (
                ("", "bad_request"), ("?user=a&channel=topic:x", "bad_request"), ("?channel=x", "bad_channel"),
                ("?user=a,b", "bad_channel"),
            ):  # fmt: skip
                assert http.get("/v1/route" + query).json()["code"] == code
        done = ringcast("route", "--user", "ann", RINGCAST_URL=a.url, RINGCAST_API_KEY=API_KEY)
        assert done.returncode == 0, done.stderr
        assert f"partition = {partition_of('user:ann', 1024)}" in done.stdout.splitlines()
        assert 'home = "a"' in done.stdout.splitlines()
        refused = ringcast("route", "--channel", "nothing", RINGCAST_URL=a.url, RINGCAST_API_KEY=API_KEY)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "bad_channel" in refused.stderr
        assert ringcast("route").returncode == 2
