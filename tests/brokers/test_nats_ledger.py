"""Everything acknowledged against everything seen, while a NATS server restarts, rewinds, is wiped, stalls and cuts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from gateway.brokers.base import Broker
from gateway.brokers.nats_link import Away
from gateway.errors import Problem
from gateway.message import Message
from tests.support.broker_steps import draft
from tests.support.nats import NatsAlone

CHANNELS = ["topic:1", "topic:2", "topic:3", "room:1"]
LONG = {"history_size": 100_000}  # so that nothing is trimmed, however long a client is away
SETTINGS = {"partitions": 2, "check_interval": "1s", "channels": {"default": LONG, "room": {"keyed": True, **LONG}}}


@dataclass
class Sent:
    """A publish that was acknowledged."""

    channel: str
    offset: int
    id: str


@dataclass
class Client:
    """A follower of one channel: it takes live messages, and reads on behind gaps."""

    broker: Broker
    channel: str
    position: int
    since: int
    got: list[tuple[int, str]] = field(default_factory=list)
    reset_at: int = -1  # how many had been acknowledged when it was last told that something may be missing
    behind: bool = False
    away: bool = False  # disconnected, with its position

    @property
    def live(self) -> bool:
        return not self.behind and not self.away


class Ledger:
    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.resets = 0

    def take(self, client: Client, message: Message) -> None:
        assert message.offset > client.position, (client.channel, message.offset, client.position)
        client.position = message.offset
        client.got.append((message.offset, message.id))

    async def catch_up(self, client: Client, tops: dict[int, int]) -> None:
        """Read on from the client's position until it has reached what its node was told; then it is live again."""
        partition = client.broker.partition(client.channel)
        while client.behind:
            page = await client.broker.read(client.channel, client.position, 50)
            if not page.continuous:
                client.reset_at = len(self.sent)
                self.resets += 1
            client.position = page.start
            for message in page.messages:
                self.take(client, message)
            client.position = max(page.reached, client.position)
            client.behind = page.more or client.position < tops[partition]

    def settle(self, clients: list[Client]) -> None:
        offsets = [(sent.channel, sent.offset) for sent in self.sent]
        assert len(set(offsets)) == len(offsets), "an offset was issued twice"
        for client in clients:
            got = set(client.got)
            for number, sent in enumerate(self.sent):
                if sent.channel != client.channel or sent.offset <= client.since or number < client.reset_at:
                    continue
                assert (sent.offset, sent.id) in got, f"{client.channel} {sent.offset} was missed in silence"


class Follower:
    """The events of one node: they make its clients behind, or hand them what is next."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.clients: list[Client] = []
        self.tops: dict[int, int] = {}

    def message(self, partition: int, message: Message) -> None:
        self.tops[partition] = message.offset
        for client in self.clients:
            if client.channel == message.channel and client.live and message.offset > client.position:
                self.ledger.take(client, message)

    def watermark(self, partition: int, offset: int) -> None:
        self.tops[partition] = offset
        for client in self.clients:
            if client.broker.partition(client.channel) == partition and client.live:
                client.position = max(client.position, offset)

    def gap(self, partition: int, offset: int) -> None:
        self.tops[partition] = offset
        for client in self.clients:
            if client.broker.partition(client.channel) == partition:
                client.behind = True


@asynccontextmanager
async def node(alone: NatsAlone, ledger: Ledger) -> AsyncIterator[tuple[Broker, Follower]]:
    broker, follower = alone.broker(alone.settings(**SETTINGS)), Follower(ledger)
    running = asyncio.create_task(broker.run(follower))
    try:
        yield broker, follower
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def patiently(broker: Broker, partitions: list[int]) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await broker.subscribe(partitions)
                return
            except Problem:
                await asyncio.sleep(0.05)


HARMLESS = ["cut", "cut", "restart", "kill", "pause"]


@pytest.mark.chaos
@pytest.mark.parametrize("loss", ["go back", "wipe"])
@pytest.mark.parametrize("seed", range(3))
async def test_what_the_server_lost_is_missed_by_nobody_in_silence(alone: NatsAlone, seed: int, loss: str) -> None:
    """One loss only, for a later one would excuse what was missed at the first."""
    dice = random.Random(seed)
    ledger = await run(alone, dice, [*dice.choices(HARMLESS, k=3), "copy", "cut", loss, *dice.choices(HARMLESS, k=2)])
    assert ledger.resets


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(2))
async def test_nobody_is_reset_where_nothing_was_lost(alone: NatsAlone, seed: int) -> None:
    dice = random.Random(seed)
    ledger = await run(alone, dice, dice.choices(HARMLESS, k=12))
    assert not ledger.resets


async def run(alone: NatsAlone, dice: random.Random, faults: list[str]) -> Ledger:
    """Three nodes that publish and follow while the server has these faults; what became of it all."""
    ledger = Ledger()
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(alone, ledger)) for _ in range(3)]
        clients: list[Client] = []
        for broker, follower in nodes:
            await patiently(broker, sorted({broker.partition(channel) for channel in CHANNELS}))
            for channel in CHANNELS:
                begun = follower.tops[broker.partition(channel)]
                client = Client(broker, channel, begun, begun)
                follower.clients.append(client)
                clients.append(client)
        stop = asyncio.Event()

        async def keep_publishing(broker: Broker) -> None:
            while not stop.is_set():
                channel = dice.choice(CHANNELS)
                one = draft(channel, key=dice.choice("abc") if channel == "room:1" and dice.random() < 0.7 else None)
                try:
                    receipt = await broker.publish(one)
                    ledger.sent.append(Sent(channel, receipt.offset, one.id))
                except Problem as problem:
                    if problem.code != "unavailable":
                        raise
                await asyncio.sleep(dice.choice([0, 0, 0.001, 0.02]))

        async def keep_reading(client: Client, follower: Follower) -> None:
            while not stop.is_set() or client.behind:
                if dice.random() < 0.02 and not stop.is_set():
                    client.away = True
                    await asyncio.sleep(dice.uniform(0, 4))
                    client.away, client.behind = False, True
                with suppress(Problem):  # the store is away: read on when it is back
                    await ledger.catch_up(client, follower.tops)
                await asyncio.sleep(0.05)

        async def keep_checking(broker: Broker, follower: Follower) -> None:
            while not stop.is_set():
                await asyncio.sleep(1)
                try:
                    await broker.check(list(follower.tops))
                except Problem:
                    continue

        async with asyncio.TaskGroup() as tasks:
            for broker, follower in nodes:
                tasks.create_task(keep_publishing(broker))
                tasks.create_task(keep_publishing(broker))
                tasks.create_task(keep_checking(broker, follower))
            for _, follower in nodes:
                for client in follower.clients:
                    tasks.create_task(keep_reading(client, follower))
            for what in faults:
                await asyncio.sleep(dice.uniform(0.1, 2))
                if what == "cut":
                    with suppress(Away):  # it was not connected anyway
                        await alone.cut(dice.choice(nodes)[0])
                elif what == "restart":
                    await alone.restart()
                elif what == "kill":
                    alone.servers[0].kill()
                    await asyncio.sleep(dice.choice([0, 1]))
                    await asyncio.to_thread(alone.servers[0].start)
                elif what == "copy":
                    await alone.copy()
                elif what == "go back":
                    await alone.go_back()
                elif what == "wipe":
                    await alone.wipe()
                else:
                    await asyncio.to_thread(alone.servers[0].pause)
                    await asyncio.sleep(dice.choice([0.5, 5]))
                    alone.servers[0].resume()
            await asyncio.sleep(4)
            stop.set()
        for broker, follower in nodes:
            await patiently(broker, [])
            await broker.check(list(follower.tops))
        await asyncio.sleep(3)
        for _, follower in nodes:
            for client in follower.clients:
                await ledger.catch_up(client, follower.tops)
        assert len(ledger.sent) > 500
        ledger.settle(clients)
    return ledger
