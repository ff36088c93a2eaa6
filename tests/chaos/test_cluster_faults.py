"""Three nodes on a Redis Cluster whose slots move from server to server, and whose servers end, under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.brokers.redis_store import SLOTS
from gateway.message import partition_of
from tests.chaos.fleet import SHORT, Fleet, Size, fleet
from tests.support.redis import RedisCluster

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[RedisCluster]:
    found = RedisCluster("--appendonly", "yes", "--appendfsync", "always")
    try:
        await asyncio.to_thread(found.start)
        yield found
    finally:
        await asyncio.to_thread(found.close)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(cluster: RedisCluster) -> AsyncIterator[Fleet]:
    async with fleet("redis-cluster", [cluster.url] * 3, 2) as found:
        yield found
        assert not found.complaints()


async def test_slots_move_and_nobody_is_reset(cluster: RedisCluster, nodes: Fleet, size: Size) -> None:
    async def move() -> None:
        for channel in nodes.channels[: len(nodes.channels) // 2]:
            await asyncio.to_thread(cluster.move, partition_of(channel, 1024) * SLOTS // 1024)
            await asyncio.sleep(size.long / len(nodes.channels))

    await nodes.ride(size, "slot migration", move)


async def test_a_server_is_killed_and_comes_back_with_its_file(cluster: RedisCluster, nodes: Fleet, size: Size) -> None:
    async def kill() -> None:
        for server in cluster.servers[: 1 if size is SHORT else 3]:
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(size.long / 5)
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(cluster.agreed)

    await nodes.ride(size, "restart of a server with AOF", kill)
