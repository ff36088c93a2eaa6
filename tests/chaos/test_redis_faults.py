"""Three nodes on one Redis: every acknowledged publish against what each client saw, while something breaks."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack

import pytest
import pytest_asyncio

from tests.chaos.fleet import Fleet, Size, fleet
from tests.conftest import PATHS
from tests.support.cable import Cable
from tests.support.redis import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")
HUNT = Size(clients=60, rate=80, seconds=10, processes=1, long=3)
AOF = ("--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0")


class Redis:
    """A server with an append-only file, a cable from each node to it, and the nodes."""

    def __init__(self, server: RedisServer, cables: list[Cable], nodes: Fleet, stack: ExitStack) -> None:
        self.server = server
        self.cables = cables
        self.fleet = nodes
        self._stack = stack

    def restart(self, *, wiped: bool = False, copied: bool = False) -> None:
        """As a crash and a start would, with what the file holds, with nothing, or with what was copied of it."""
        self.server.kill()
        if wiped or copied:
            shutil.rmtree(self.server.folder / "appendonlydir")
        if copied:
            shutil.copytree(self.server.folder / "copy", self.server.folder / "appendonlydir")
        self.server.start()

    def copy(self) -> None:
        """Keep what its file holds now, for `restart`."""
        self.server.pause()
        shutil.copytree(self.server.folder / "appendonlydir", self.server.folder / "copy", dirs_exist_ok=True)
        self.server.resume()

    def hand_over(self) -> None:
        """FAILOVER to a new replica that has everything; new connections lead there, those of before stay."""
        first = self.server
        self.server = self._stack.enter_context(RedisServer(*AOF))
        first.hand_over(self.server)
        for cable in self.cables:
            cable.far = self.server.port


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PATHS)
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """Of nodes that take connections below ASGI, or through it: no store makes a difference to that."""
    with ExitStack() as servers:
        server = servers.enter_context(RedisServer(*AOF))
        async with AsyncExitStack() as stack:
            cables = [await stack.enter_async_context(Cable(server.port)) for _ in range(3)]
            urls = [f"redis://127.0.0.1:{cable.port}/0" for cable in cables]
            nodes = await stack.enter_async_context(fleet("redis", urls, 2, native=request.param))
            yield Redis(server, cables, nodes, servers)
            assert not nodes.complaints()


async def test_a_node_is_killed(redis: Redis, size: Size) -> None:
    async def kill() -> None:
        node = redis.fleet.nodes[0]
        await asyncio.to_thread(node.kill)
        await asyncio.sleep(size.long / 3)
        await asyncio.to_thread(node.start)

    await redis.fleet.ride(size, "SIGKILL of a node", kill)


async def test_a_node_is_stopped_and_goes_on(redis: Redis, size: Size) -> None:
    async def stop() -> None:
        redis.fleet.nodes[1].signal(signal.SIGSTOP)
        await asyncio.sleep(size.long)
        redis.fleet.nodes[1].signal(signal.SIGCONT)

    await redis.fleet.ride(size, f"SIGSTOP of a node for {size.long:g} s", stop)


async def test_all_nodes_are_restarted_one_after_another(redis: Redis, size: Size) -> None:
    async def restart() -> None:
        for node in redis.fleet.nodes:
            assert await asyncio.to_thread(node.stop) == 0
            await asyncio.to_thread(node.start)

    await redis.fleet.ride(size, "rolling restart", restart)


async def test_the_connections_that_listen_are_killed(redis: Redis, size: Size) -> None:
    async def kill() -> None:
        for _ in range(3):
            await asyncio.to_thread(redis.server.cut)
            await asyncio.sleep(size.long / 5)

    await redis.fleet.ride(size, "CLIENT KILL TYPE pubsub", kill)


async def test_the_store_is_restarted_with_its_file(redis: Redis, size: Size) -> None:
    await redis.fleet.ride(size, "restart with AOF", lambda: asyncio.to_thread(redis.restart))


async def test_the_store_is_handed_over_and_nobody_is_reset(redis: Redis, size: Size) -> None:
    """The first server lives on as a replica, and ends no connection: it is the nodes that have to leave it."""

    async def hand_over() -> None:
        await asyncio.to_thread(redis.hand_over)

    first = redis.server
    await redis.fleet.ride(size, "FAILOVER", hand_over)
    await asyncio.to_thread(first.close)


async def test_a_node_is_parted_from_the_store(redis: Redis, size: Size) -> None:
    async def part() -> None:
        redis.cables[2].swallow()
        await asyncio.sleep(size.long + 1)  # longer than the silence that a node puts up with
        redis.cables[2].heal()

    await redis.fleet.ride(size, "partition between a node and the store", part)


async def test_the_store_is_restarted_wiped_and_everyone_is_told(redis: Redis, size: Size) -> None:
    report = await redis.fleet.ride(
        size, "restart wiped", lambda: asyncio.to_thread(redis.restart, wiped=True), loses="everything"
    )
    assert report.resets.get("lost", 0) >= 2 * size.clients  # each of its two channels


async def test_a_restart_from_an_older_file_is_announced(redis: Redis, size: Size) -> None:
    """More is published afterwards than was lost, so that offsets alone do not show it."""

    async def go_back() -> None:
        with redis.fleet.half_of_the_channels():
            await redis.fleet.acknowledged(20)  # and nothing of the others is under way any more
            await asyncio.to_thread(redis.copy)
            before = redis.fleet.ledger.published
            await redis.fleet.acknowledged(20)
            await asyncio.to_thread(redis.restart, copied=True)
        await redis.fleet.acknowledged(3 * (redis.fleet.ledger.published - before))

    report = await redis.fleet.ride(size, "restart from an older file", go_back, loses="some")
    assert report.gone > 10
    assert report.published > 2 * report.gone
    assert 0 < report.resets["lost"] < 2 * size.clients


@pytest.mark.chaos
@pytest.mark.parametrize("wiped", [False, True], ids=["whole", "wiped"])
@pytest.mark.parametrize("seed", range(3))
async def test_faults_at_random_and_two_at_a_time(redis: Redis, seed: int, wiped: bool) -> None:
    """What each of them alone cannot show. Only one loss: a second one would excuse what was missed at the first."""
    dice = random.Random(seed)
    nodes = redis.fleet.nodes

    async def kill() -> None:
        await asyncio.to_thread(dice.choice(nodes[:2]).restart, kill=True)

    async def drain() -> None:
        await asyncio.to_thread(nodes[2].restart)

    async def stop() -> None:
        nodes[0].signal(signal.SIGSTOP)
        await asyncio.sleep(dice.uniform(0.5, 6))
        nodes[0].signal(signal.SIGCONT)

    async def hang() -> None:
        redis.server.pause()
        await asyncio.sleep(dice.uniform(0.2, 4))
        redis.server.resume()

    async def cut() -> None:
        await asyncio.to_thread(redis.server.cut)

    async def cut_all() -> None:
        for cable in redis.cables:
            cable.cut()

    async def part() -> None:
        cable = dice.choice(redis.cables)
        cable.swallow()
        await asyncio.sleep(dice.uniform(0.5, 6))
        cable.heal()

    async def restart() -> None:
        await asyncio.to_thread(redis.restart)

    async def wipe() -> None:
        await asyncio.to_thread(redis.restart, wiped=True)

    # Of a node and of the store, so that two at a time never stop the same process.
    at_nodes, at_store = [kill, drain, stop], [hang, cut, cut_all, part, restart]

    async def series(faults: Sequence[Callable[[], Awaitable[None]]]) -> None:
        for fault in faults:
            await fault()
            await asyncio.sleep(dice.uniform(0, 3))

    async def both() -> None:
        later = dice.choices(at_store, k=8)
        if wiped:
            later[4] = wipe
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(series(dice.choices(at_nodes, k=6)))
            tasks.create_task(series(later))

    name = f"random faults {seed}" + (", wiped" if wiped else "")
    await redis.fleet.ride(HUNT, name, both, loses="everything" if wiped else "nothing")


@pytest.mark.parametrize(
    "rings",
    [
        pytest.param(("random", "random", "empty"), id="mixed"),
        pytest.param(("random",) * 3, id="random", marks=pytest.mark.chaos),
        pytest.param(("empty",) * 3, id="empty", marks=pytest.mark.chaos),
    ],
)
async def test_every_node_has_a_ring_of_its_own_that_is_wrong(redis: Redis, size: Size, rings: tuple[str, ...]) -> None:
    async def kill() -> None:  # so that all draw another one
        await asyncio.to_thread(redis.fleet.nodes[0].restart, kill=True)

    for node, kind in zip(redis.fleet.nodes, rings, strict=True):
        node.module, node.env["RING"] = "tests.support.wrong_ring", kind
    await redis.fleet.each(lambda node: node.restart(kill=True))
    await redis.fleet.ride(size, f"rings {' '.join(rings)}", kill)
