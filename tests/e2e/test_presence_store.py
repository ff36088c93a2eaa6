"""Presence where the store is away, or is another one: it waits, says nothing wrong, and heals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.test_presence import TTL, enter, gateway, users, watching
from tests.support.gateway import Gateway
from tests.support.redis import RedisServer

ROOM = "room:1"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def nodes(redis: RedisServer) -> Iterator[list[Gateway]]:
    with ExitStack() as stack:
        yield [stack.enter_context(gateway(redis.url, name)) for name in "ab"]


def at_home(node: Gateway) -> bool:
    """Whether it knows the other node, and has for a second subscribed to nothing more."""
    with node.http() as http:
        homes = {member["node"]: member["home_of"] for member in http.get("/v1/nodes").json()["nodes"]}
    before, own = node.metric("ringcast_partitions"), int(homes[node.env["RINGCAST_NODE"]])
    time.sleep(1)
    return 0 < own < 1024 and own <= before == node.metric("ringcast_partitions")


def answers(node: Gateway) -> bool:
    with node.http() as http:
        return http.get("/v1/presence", params={"channel": ROOM}).is_success


async def test_nobody_leaves_while_the_store_is_away(redis: RedisServer, nodes: list[Gateway]) -> None:
    a, b = nodes
    for node in nodes:
        await node.until(lambda node=node: at_home(node), said="each follows the partitions that it is home to")  # type: ignore[misc]
    async with watching([b], ROOM) as watcher:
        ann, bob = await enter(a, "ann", ROOM), await enter(b, "bob", ROOM)
        elsewhere = await enter(b, "eve", "room:2")  # so that what she follows is followed already
        await watcher.until(lambda: len(watcher.told) == 2)
        await asyncio.to_thread(redis.pause)
        try:
            await asyncio.sleep(TTL + 1)
            eve = await enter(b, "eve", ROOM)
            await ann.close()
        finally:
            await asyncio.to_thread(redis.resume)
        await watcher.until(lambda: watcher.members.keys() == {"bob", "eve"}, within=20)
        assert sorted(watcher.told[2:]) == [("join", "eve"), ("leave", "ann")]
        await asyncio.sleep(TTL)  # who judged others without having heard of them would by now
        assert len(watcher.told) == 4
        for client in (bob, eve, elsewhere):
            await client.close()


async def test_a_store_that_was_wiped_is_told_again_who_is_there(redis: RedisServer, nodes: list[Gateway]) -> None:
    a, b = nodes
    ann, bob = await enter(a, "ann", ROOM), await enter(b, "bob", ROOM)
    await a.until(lambda: users(a, ROOM) == {"ann", "bob"})
    await asyncio.to_thread(redis.wipe)
    await a.until(lambda: answers(a) and users(a, ROOM) == {"ann", "bob"}, within=20)
    await ann.close()
    await b.until(lambda: users(b, ROOM) == {"bob"})
    await bob.close()
