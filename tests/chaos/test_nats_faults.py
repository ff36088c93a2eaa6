"""Three nodes on one NATS server: every acknowledged publish against what each client saw, while something breaks."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import httpx
import pytest
import pytest_asyncio

from gateway.message import partition_of
from gateway.verify.load import RETRY
from publisher.client import AsyncPublisher
from tests.chaos.fleet import FULL, SHORT, Fleet, Size, fleet
from tests.support.cable import Cable
from tests.support.keys import API_KEY
from tests.support.nats import NatsAlone, NatsServer

pytestmark = pytest.mark.asyncio(loop_scope="module")
HUNT = Size(clients=60, rate=80, seconds=10, processes=1, long=3)
PARTITIONS = 64
IMPATIENT = {"write_deadline": "500ms"}  # then the server cuts a connection that takes nothing
HEAVY = 60_000  # bytes of a message that is to fill a connection
ROOM = 128 << 10  # bytes that it takes


class Nats:
    """A server that keeps files, a cable from each node to it, and the nodes."""

    def __init__(self, alone: NatsAlone, cables: list[Cable], nodes: Fleet) -> None:
        self.alone = alone
        self.server = alone.servers[0]
        self.cables = cables
        self.fleet = nodes

    def restart(self) -> None:
        """As a crash and a start would, with the files."""
        self.server.kill()
        self.server.start()

    async def anew(self, options: str = "", rings: tuple[str, ...] = ()) -> None:
        """Start all nodes again: on streams of another kind, or with rings that are wrong."""
        for node, cable, kind in itertools.zip_longest(self.fleet.nodes, self.cables, rings):
            node.env["RINGCAST_BROKER"] = f"nats://127.0.0.1:{cable.port}{options}"
            node.module, node.env["RING"] = ("tests.support.wrong_ring", kind) if kind else ("gateway.cli", "")
        await self.fleet.each(lambda node: node.restart(kill=True))

    async def cut_as_slow(self) -> int:
        """How many connections the server has cut because they took nothing."""
        async with httpx.AsyncClient(trust_env=False) as http:
            found = (await http.get(f"http://127.0.0.1:{self.server.monitor}/varz")).json()
        return int(found["slow_consumers"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nats() -> AsyncIterator[Nats]:
    alone = NatsAlone()
    alone.servers = [NatsServer(config=IMPATIENT)]
    await asyncio.to_thread(alone.servers[0].start)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(alone.close)
        cables = [await stack.enter_async_context(Cable(alone.servers[0].port, room=ROOM)) for _ in range(3)]
        urls = [f"nats://127.0.0.1:{cable.port}" for cable in cables]
        nodes = await stack.enter_async_context(fleet("nats", urls, 2, partitions=PARTITIONS))
        yield Nats(alone, cables, nodes)
        assert not nodes.complaints()


async def kill(nats: Nats, size: Size) -> None:
    node = nats.fleet.nodes[0]
    await asyncio.to_thread(node.kill)
    await asyncio.sleep(size.long / 3)
    await asyncio.to_thread(node.start)


async def restart_nodes(nats: Nats, size: Size) -> None:
    for node in nats.fleet.nodes:
        assert await asyncio.to_thread(node.stop) == 0
        await asyncio.to_thread(node.start)


async def part(nats: Nats, size: Size) -> None:
    nats.cables[2].swallow()
    await asyncio.sleep(size.long + 1)  # longer than the silence that a node puts up with
    nats.cables[2].heal()


async def overwhelm(nats: Nats, size: Size) -> None:
    """A node stands still until the server cuts it off: what lay in its connection is lost to it, and what follows."""
    channel = beside(nats.fleet.channels[0])  # of a partition that the node follows, and nobody's of the ledger
    before = await nats.cut_as_slow()
    nats.fleet.nodes[1].signal(signal.SIGSTOP)
    try:
        async with AsyncPublisher(nats.fleet.nodes[0].url, API_KEY, retry=RETRY) as publisher, asyncio.timeout(60):
            while await nats.cut_as_slow() == before:
                await asyncio.gather(*(publisher.publish(channel, "x" * HEAVY, event="test") for _ in range(10)))
        await asyncio.sleep(size.long / 3)
    finally:
        nats.fleet.nodes[1].signal(signal.SIGCONT)


def beside(channel: str) -> str:
    """Another channel of the same stream."""
    names = (f"topic:heavy-{number}" for number in itertools.count())
    return next(name for name in names if partition_of(name, PARTITIONS) == partition_of(channel, PARTITIONS))


async def restart_server(nats: Nats, size: Size) -> None:
    await asyncio.to_thread(nats.restart)


HARMLESS = {
    "SIGKILL of a node": kill,
    "partition between a node and the store": part,
    "slow consumer cut by the server": overwhelm,
    "restart with files": restart_server,
    "rolling restart": restart_nodes,
}
RIDES = [
    pytest.param(SHORT, list(HARMLESS)[:3], id="short-of-nodes"),
    pytest.param(SHORT, ["restart with files"], id="short-restart with files"),
    *(pytest.param(FULL, [name], id=f"full-{name}", marks=pytest.mark.chaos) for name in HARMLESS),
]


@pytest.mark.parametrize(("size", "names"), RIDES)
async def test_nothing_is_missed_and_nobody_is_reset(nats: Nats, size: Size, names: list[str]) -> None:
    """Each node has another fault at the same time in the short one."""

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(HARMLESS[name](nats, size))

    await nats.fleet.ride(size, ", ".join(names), all_of_them)


async def test_files_restored_from_an_older_copy_are_announced(nats: Nats, size: Size) -> None:
    """While publishes wait; and more is published afterwards than was lost, so that offsets alone do not show it."""

    async def go_back() -> None:
        with nats.fleet.half_of_the_channels():
            await nats.fleet.acknowledged(15)  # and nothing of the others is under way any more
            await nats.alone.copy()
            before = nats.fleet.ledger.published
            await nats.fleet.acknowledged(15)
            await nats.alone.go_back()
        await nats.fleet.acknowledged(2 * (nats.fleet.ledger.published - before))

    report = await nats.fleet.ride(size, "files restored from an older copy", go_back, loses="some")
    assert report.gone > 10
    assert report.published > 2 * report.gone
    assert 0 < report.resets["lost"] < 2 * size.clients


async def test_every_node_has_a_ring_of_its_own_that_is_wrong(nats: Nats, size: Size) -> None:
    rings = ("random", "random", "empty")
    await nats.anew(rings=rings)
    name = f"rolling restart, rings {' '.join(rings)}"
    await nats.fleet.ride(size, name, lambda: restart_nodes(nats, size))  # so that all draw another one


async def test_memory_that_is_gone_after_a_restart_is_told_to_everyone(nats: Nats, size: Size) -> None:
    await nats.anew("/?storage=memory&prefix=memory")
    report = await nats.fleet.ride(
        size, "restart with memory storage", lambda: asyncio.to_thread(nats.restart), loses="everything"
    )
    assert sum(report.resets.values()) >= 2 * size.clients  # each of its two channels


@pytest.mark.chaos
@pytest.mark.parametrize("loss", ["nothing", "older", "memory"])
@pytest.mark.parametrize("seed", range(3))
async def test_faults_at_random_and_two_at_a_time(nats: Nats, seed: int, loss: str) -> None:
    """What each of them alone cannot show. Only one loss: a second one would excuse what was missed at the first."""
    dice = random.Random(seed)
    nodes, server = nats.fleet.nodes, nats.server
    await nats.anew("/?storage=memory&prefix=memory" if loss == "memory" else "")
    alive = asyncio.Lock()  # held while no node may end: what only ended nodes had heard of, nobody can tell

    async def end() -> None:
        async with alive:
            await asyncio.to_thread(dice.choice(nodes).restart, kill=dice.random() < 0.7)

    async def stop() -> None:
        node = dice.choice(nodes)
        async with alive:
            node.signal(signal.SIGSTOP)
            await asyncio.sleep(dice.uniform(0.5, 6))
            node.signal(signal.SIGCONT)

    async def hang() -> None:
        await asyncio.to_thread(server.pause)
        await asyncio.sleep(dice.uniform(0.2, 5))
        server.resume()

    async def cut() -> None:
        for cable in dice.sample(nats.cables, dice.randint(1, 3)):
            cable.cut()

    async def break_off() -> None:
        cable = dice.choice(nats.cables)
        cable.swallow()
        await asyncio.sleep(dice.uniform(0.5, 6))
        cable.heal()

    async def lose_some() -> None:
        """Of the live messages that come over a cable; the connection goes on."""
        cable = dice.choice(nats.cables)
        cable.drop = lambda data: is_live(data) and dice.random() < 0.3
        await asyncio.sleep(dice.uniform(0.5, 4))
        cable.drop = lambda _: False

    async def restart() -> None:
        await asyncio.to_thread(nats.restart)

    async def lose() -> None:
        async with alive:
            await nats.fleet.ready()
            if loss == "memory":
                await restart()
            else:
                await nats.alone.copy()
                await asyncio.sleep(dice.uniform(0.2, 2))
                await nats.alone.go_back()
            await nats.fleet.ready()

    # Of a node and of the store, so that two at a time never stop the same process.
    at_nodes, at_store = [end, stop], [hang, cut, cut, break_off, lose_some, restart]
    if loss == "memory":
        at_store.remove(restart)

    async def series(faults: Sequence[Callable[[], Awaitable[None]]]) -> None:
        for fault in faults:
            await fault()
            await asyncio.sleep(dice.uniform(0, 3))

    async def both() -> None:
        later = dice.choices(at_store, k=8)
        if loss != "nothing":
            later[4] = lose
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(series(dice.choices(at_nodes, k=6)))
            tasks.create_task(series(later))

    name = f"random faults {seed}, {loss} lost"
    await nats.fleet.ride(HUNT, name, both, loses="nothing" if loss == "nothing" else "everything")


def is_live(data: bytes) -> bool:
    """Whether these bytes of a connection are one live message and nothing else."""
    line = data.partition(b"\r\n")[0]
    words = line.split()
    return line.startswith(b"HMSG ") and b".live." in words[1] and len(data) == len(line) + 4 + int(words[-1])
