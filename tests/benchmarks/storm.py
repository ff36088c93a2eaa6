"""What a storm of returning users and the periodic check cost the store: counts of commands, and CPU.

    python -m tests.benchmarks.storm [--users 10000] [--channels 20000]

A node that follows the partitions of all its users is joined by as many again, each with a position since which nothing
was published to them. The store's own statistics say what reached it meanwhile; the node does all else that it does.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateway.auth import Authenticator, Identity
from gateway.brokers import open_broker
from gateway.message import Message
from gateway.metrics import Metrics
from gateway.node import Node
from gateway.session import Ask, Calls, Session
from tests.benchmarks.table import Table
from tests.support.broker_steps import draft
from tests.support.deployments import Deployment, RedisAlone
from tests.support.nats import NatsAlone

SUBSCRIBING = ("subscribe", "ssubscribe")


@dataclass
class Counts:
    """What reached the store: subscriptions, questions (scripts, views, requests), and reads of a socket it took."""

    subscriptions: int
    questions: int
    reads: int

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.subscriptions - before.subscriptions, self.questions - before.questions, self.reads - before.reads
        )


def counts(store: Deployment) -> Counts:
    if isinstance(store, RedisAlone):
        with store.server.client() as client:
            found = client.info("commandstats")
            calls = {name.removeprefix("cmdstat_"): figures["calls"] for name, figures in found.items()}
            asked = sum(calls.get(name, 0) for name in ("evalsha", "eval", "exec"))
            subscribed = sum(calls.get(name, 0) for name in SUBSCRIBING)
            return Counts(subscribed, asked, client.info("stats")["total_reads_processed"])
    assert isinstance(store, NatsAlone)
    monitor = f"http://127.0.0.1:{store.servers[0].monitor}"
    connections = httpx.get(f"{monitor}/connz", trust_env=False).json()["connections"]
    (node,) = [each for each in connections if each["name"] == "ringcast"]
    return Counts(node["subscriptions"], node["in_msgs"], node["in_msgs"])


@asynccontextmanager
async def running(store: Deployment, **changes: Any) -> AsyncIterator[Node]:
    """A node that asks its store for nothing but what is measured: no check comes by, and it ends nobody's keys."""
    settings = store.settings(check_interval="1h", node_ttl="1h", **changes)
    node = Node(settings, open_broker(settings), Authenticator(settings), Metrics())
    node.broker.homes = list
    await node.broker.start()
    await node.start()
    try:
        async with asyncio.timeout(30):
            while not node.broker.connected:  # noqa: ASYNC110 - it is a property
                await asyncio.sleep(0.01)
        yield node
    finally:
        await node.stop()


async def join(node: Node, channel: str, since: int | None) -> Session:
    session = node.session(Identity(channel.partition(":")[2]), Calls(lambda: None), welcome=True)
    await node.open(session, [Ask(channel, since)])
    return session


@dataclass
class Storm:
    users: int
    counts: Counts
    spent: float  # CPU seconds of this process
    recovered: int


async def storm(store: Deployment, users: int, partitions: int) -> Storm:
    """So many users come back to a node that holds their partitions, and are told what they missed: nothing."""
    async with running(store, partitions=partitions, recent_bytes="128MiB") as node:
        channels = [f"user:{number}" for number in range(users)]
        there = [await join(node, channel, None) for channel in channels]
        positions = {channel: session.reached()[channel] for channel, session in zip(channels, there, strict=True)}
        for channel in channels[:50]:  # some of them live on, and with them their partitions
            await node.publish(draft(channel))
        await asyncio.sleep(0.5)
        before, began = counts(store), time.process_time()
        sessions = [await join(node, channel, positions[channel]) for channel in channels]
        await asyncio.sleep(0.2)  # what was asked for in the background reaches the store, too
        spent, after = time.process_time() - began, counts(store)
        recovered = 0
        for number, session in enumerate(sessions):
            items = session.take(1 << 20)
            body = next(item for item in items if not isinstance(item, Message)).body
            recovered += body["channels"][0].get("recovered") is True
            got = sum(isinstance(item, Message) for item in items)
            assert got == (1 if number < 50 else 0), "a message was missed, or came twice"
        return Storm(users, after.since(before), spent, recovered)


@dataclass
class Check:
    partitions: int
    counts: Counts
    spent: float  # CPU seconds of this process
    store: float  # and of the store's


async def check(store: Deployment, channels: int, partitions: int, rounds: int) -> Check:
    """The periodic check of a node that follows all partitions, with so many channels in use."""
    async with running(store, partitions=partitions) as node:
        names = [f"topic:{number}" for number in range(channels)]
        for start in range(0, channels, 200):
            await asyncio.gather(*(join(node, name, None) for name in names[start : start + 200]))
            await asyncio.gather(*(node.publish(draft(name)) for name in names[start : start + 200]))
        await asyncio.sleep(0.5)
        before, began, theirs = counts(store), time.process_time(), cpu_of(store)
        for _ in range(rounds):
            await node.broker.check(list(node.hub.partitions))
        spent, used = time.process_time() - began, cpu_of(store) - theirs
        found = counts(store).since(before)
        assert node.metrics.gaps == 0
        each = Counts(found.subscriptions, found.questions // rounds, found.reads // rounds)
        return Check(len(node.hub.partitions), each, spent / rounds, used / rounds)


def cpu_of(store: Deployment) -> float:
    """CPU seconds that the store's process has used."""
    process = store.server._process if isinstance(store, RedisAlone) else store.servers[0]._process  # type: ignore[attr-defined]
    assert process is not None
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@asynccontextmanager
async def opened(kind: type[Deployment]) -> AsyncIterator[Deployment]:
    deployment = kind()
    await deployment.open()
    try:
        yield deployment
    finally:
        await deployment.close()


async def tables(rounds: int, users: int = 10_000, channels: int = 20_000) -> list[Table]:
    """One storm and one deployment's checks a store; `rounds` are those of the checks."""
    storms, questions, checks, costs = {}, {}, {}, {}
    for kind, name, partitions in ((RedisAlone, "Redis", 1024), (NatsAlone, "NATS", 64)):
        async with opened(kind) as store:
            found = await storm(store, users, partitions)
        assert found.counts.subscriptions == 0, "who comes back subscribed to something"
        assert found.recovered == found.users, f"{found.recovered} of {found.users} were told that they missed nothing"
        storms[name] = [found.spent / users * 1e6]
        questions[name] = [found.counts.questions / users]
        async with opened(kind) as store:
            cost = await check(store, channels, partitions, rounds)
        checks[f"{name}: questions"] = [float(cost.counts.questions)]
        checks[f"{name}: reads of the store's socket"] = [float(cost.counts.reads)]
        costs[f"{name}: the node"] = [cost.spent * 1e3]
        costs[f"{name}: the store"] = [cost.store * 1e3]
    title = f"{users:,} users come back to sessions, without sockets"
    every = f"The periodic check of a node that follows every partition, {channels:,} channels in use"
    found_tables = [
        Table(title, "questions to the store each", questions),
        Table(f"{title}: the node", "µs of CPU each", storms),
        Table(every, "of all partitions", checks),
        Table(f"{every}: cost", "ms of CPU", costs),
    ]
    for name in questions:
        found_tables[0].aim_at(f"Coming back to sessions on {name}", name, 0.1, "questions to the store each")
    for table in found_tables:
        table.show()
    return found_tables


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--users", type=int, default=10_000)
    ask.add_argument("--channels", type=int, default=20_000)
    a = ask.parse_args()
    await tables(10, a.users, a.channels)


if __name__ == "__main__":
    asyncio.run(main())
