"""Three nodes on a NATS cluster whose leaders step down and whose servers are killed, under load."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import pytest_asyncio

from gateway.message import partition_of
from tests.chaos.fleet import FULL, SHORT, Fleet, Size, fleet
from tests.support.nats import NatsCluster

pytestmark = pytest.mark.asyncio(loop_scope="module")
HUNT = Size(clients=60, rate=80, seconds=10, processes=1, long=3)
PARTITIONS = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[NatsCluster]:
    found = NatsCluster()
    try:
        await found.open()
        yield found
    finally:
        await found.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(cluster: NatsCluster) -> AsyncIterator[Fleet]:
    async with fleet("nats-cluster", [cluster.url] * 3, 2, partitions=PARTITIONS) as found:
        yield found
        assert not found.complaints()


async def step_down(cluster: NatsCluster, nodes: Fleet, size: Size) -> None:
    for channel in nodes.channels[:30]:
        await cluster.step_down(stream_of(channel))
        await asyncio.sleep(size.long / len(nodes.channels) / 3)


@pytest.mark.chaos
async def test_leaders_step_down_and_nobody_is_reset(cluster: NatsCluster, nodes: Fleet) -> None:
    await nodes.ride(FULL, "leaders that step down", lambda: step_down(cluster, nodes, FULL))


async def test_leaders_are_killed_and_nobody_is_reset(cluster: NatsCluster, nodes: Fleet, size: Size) -> None:
    async def kill() -> None:
        if size is SHORT:
            await step_down(cluster, nodes, size)
        for channel in nodes.channels[: 1 if size is SHORT else 3]:
            leader = await cluster.leader(stream_of(channel))
            await asyncio.to_thread(leader.kill)
            await asyncio.sleep(size.long / 3)
            await asyncio.to_thread(leader.start)

    await nodes.ride(size, "leaders that step down, SIGKILL of one" if size is SHORT else "SIGKILL of leaders", kill)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(4))
async def test_faults_at_random_and_two_at_a_time(cluster: NatsCluster, nodes: Fleet, seed: int) -> None:
    """Of a node and of one server, so that a majority of them is there, if not always the same."""
    dice = random.Random(seed)

    async def end() -> None:
        await asyncio.to_thread(dice.choice(nodes.nodes).restart, kill=dice.random() < 0.7)

    async def stop() -> None:
        node = dice.choice(nodes.nodes)
        node.signal(signal.SIGSTOP)
        await asyncio.sleep(dice.uniform(0.5, 6))
        node.signal(signal.SIGCONT)

    async def leave() -> None:
        for channel in dice.sample(nodes.channels, 5):
            await cluster.step_down(stream_of(channel))

    async def kill() -> None:
        server = dice.choice(cluster.servers)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(dice.uniform(0, 3))
        await asyncio.to_thread(server.start)

    async def hang() -> None:
        server = dice.choice(cluster.servers)
        await asyncio.to_thread(server.pause)
        await asyncio.sleep(dice.uniform(0.2, 6))
        server.resume()

    async def restart() -> None:
        await cluster.restart()

    async def series(faults: Sequence[Callable[[], Awaitable[None]]]) -> None:
        for fault in faults:
            await fault()
            await asyncio.sleep(dice.uniform(0, 3))

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(series(dice.choices([end, stop], k=6)))
            tasks.create_task(series([leave, *dice.choices([leave, kill, kill, hang, restart], k=5)]))

    await nodes.ride(HUNT, f"random faults {seed}", both)


def stream_of(channel: str) -> str:
    return f"rc-{'k' if channel.startswith('room:') else 'l'}{partition_of(channel, PARTITIONS)}"
