"""Whoever comes to watch a job, whenever and over whatever transport, sees its state and then its last end, once."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from gateway.message import decode_cursor
from tests.support.clients import TRANSPORTS, Client, connect
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.nats import NatsServer
from tests.support.raw import RawStream
from tests.support.redis import RedisServer

LAST = "zz-last"  # a job that is told of in every channel when all others have ended: nothing follows it
Sizes = tuple[int, int, float, float]  # jobs, watchers, seconds, seconds between the polls of one that polls
SMALL: Sizes = (12, 48, 1.5, 0.1)
FULL: Sizes = (200, 1000, 60.0, 2.0)
NODES: dict[str, Any] = {"drain": "1s", "drain_wait": 0, "requests_per_second": 100_000}


@dataclass
class Work:
    """One job, and what it ends as."""

    name: str
    user: str | None
    ends: str
    told: asyncio.Event = field(default_factory=asyncio.Event)  # of LAST
    last: int = 0  # the offset of LAST, once it is told

    @property
    def channel(self) -> str:
        return f"jobs:job.{self.name}" if self.user is None else f"jobs:{self.user}"

    @property
    def query(self) -> dict[str, str]:
        return {} if self.user is None else {"user": self.user}


class Run:
    def __init__(self, nodes: list[Gateway], sizes: Sizes, rnd: random.Random) -> None:
        self.rnd, self.nodes = rnd, nodes
        jobs, self.watchers, self.seconds, self.pause = sizes
        ends = ["succeeded", "succeeded", "failed", "dead_lettered", "cancelled"]
        self.jobs = [
            Work(f"job-{n}", rnd.choice([None, *(f"user-{n}" for n in range(max(2, jobs // 10)))]), rnd.choice(ends))
            for n in range(jobs)
        ]
        self.seen: dict[str, int] = dict.fromkeys(("before", "during", "after"), 0)

    async def go(self) -> None:
        async with AsyncExitStack() as stack:
            self.http = [await stack.enter_async_context(node.api()) for node in self.nodes]
            async with asyncio.TaskGroup() as tasks:
                work = [tasks.create_task(self.work(job)) for job in self.jobs]
                watch = [tasks.create_task(self.watch(number)) for number in range(self.watchers)]
                await asyncio.gather(*work)
                for channel in {job.channel: job for job in self.jobs}.values():
                    more = {"parent": channel.name} if channel.user is None else channel.query
                    last = await self.tell(LAST, "succeeded", **more)
                    for job in self.jobs:
                        if job.channel == channel.channel:
                            job.last = last
                            job.told.set()
                await asyncio.gather(*watch)

    # ---------------------------------------------------------------- working

    async def tell(self, job: str, state: str, **more: Any) -> int:
        """Returns the offset."""
        answer = await self.rnd.choice(self.http).post(f"/v1/jobs/{job}", json={"state": state} | more)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["offset"])

    async def work(self, job: Work) -> None:
        """Some attempts with some progress, each event told by any node, now and then twice or late."""
        begins, lasts = self.rnd.uniform(0, self.seconds / 2), self.rnd.uniform(0.1, self.seconds / 2)
        await asyncio.sleep(begins)
        await self.tell(job.name, "queued", **job.query)
        attempts = self.rnd.choice([1, 1, 2, 3])
        for attempt in range(1, attempts + 1):
            run = time.time_ns() // 1_000_000
            about = {"attempt": attempt, "lease_ms": 600_000} | job.query
            steps = self.rnd.randrange(1, 8)
            for seq in range(1, steps + 1):
                await self.tell(job.name, "started" if seq == 1 else "progress", run=run, seq=seq,
                                progress={"done": seq - 1, "total": steps}, **about)  # fmt: skip
                await asyncio.sleep(lasts / attempts / steps)
            end = "retrying" if attempt < attempts else job.ends
            for _ in range(self.rnd.choice([1, 1, 2])):
                await self.tell(job.name, end, **about)
            await self.tell(job.name, "progress", run=run, seq=steps, **about)

    # ---------------------------------------------------------------- watching

    async def watch(self, number: int) -> None:
        job, node = self.rnd.choice(self.jobs), self.rnd.randrange(len(self.nodes))
        transport = TRANSPORTS[number % len(TRANSPORTS)]
        after = self.rnd.random() < 0.1
        if after:
            await job.told.wait()
        else:
            await asyncio.sleep(self.rnd.uniform(0, self.seconds))
        who = token(job.user) if job.user is not None else token(f"watcher-{number}", ["jobs:job.*"])
        options: dict[str, Any] = {} if job.user is not None else {"channels": [job.channel]}
        url = self.nodes[node].url
        if number % 2:
            state, cursor = await self.ask(job, who, url)
            position = decode_cursor(cursor, 4 << 10)[job.channel]
            async with await connect(transport, url, who, cursor=cursor, **options) as client:
                await self.follow(client, job, state, position=position)
        else:
            async with await connect(transport, url, who, snapshot=True, **options) as client:
                state, over = await first(client, job)
                await self.follow(client, job, state, over=over)

    async def ask(self, job: Work, who: str, url: str) -> tuple[dict[str, Any] | None, str]:
        """The state and the cursor behind it, of whichever node answers."""
        headers = {"Authorization": f"Bearer {who}"}
        async with httpx.AsyncClient(  # without the authorities' certificates: reading them took two thirds of all time
            base_url=url, headers=headers, timeout=60, trust_env=False, verify=False
        ) as http:
            answer = await http.get(f"/v1/jobs/{job.name}")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return (None if found["job"]["state"] == "pending" else found["job"]), found["cursor"]

    async def follow(
        self, client: Client, job: Work, state: dict[str, Any] | None, *, over: bool = False, position: int = 0
    ) -> None:
        """From a state on, to the end of the channel, which may be known only later to lie before `position`."""
        versions, ends = [], []
        if state is not None:
            versions.append(version(state))
            ends += [state["state"]] if state["final"] else []
        self.seen["before" if state is None else "after" if ends else "during"] += 1
        told = asyncio.create_task(job.told.wait())
        coming: asyncio.Task[dict[str, Any]] | None = None
        try:
            while not over:
                coming = asyncio.create_task(client.frame("message", "reset", "checkpoint", within=120))
                await asyncio.wait({coming, *([told] if position else [])}, return_when=asyncio.FIRST_COMPLETED)
                if told.done():
                    if job.last <= position:
                        break
                    position = 0
                frame = await coming
                if frame["type"] == "checkpoint":
                    if client.transport == "poll":
                        await asyncio.sleep(self.pause)  # between two polls, as who is told an interval
                    continue
                assert frame["type"] == "message", frame
                assert frame["channel"] == job.channel
                over = frame["key"] == LAST
                if frame["key"] == job.name:
                    assert tuple(frame["version"]) == version(frame["data"])
                    versions.append(tuple(frame["version"]))
                    ends += [frame["data"]["state"]] if frame["data"]["final"] else []
        finally:
            waiting = [task for task in (told, coming) if task is not None and not task.done()]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        assert versions == sorted(set(versions)), "in order, and each once"
        # A job that failed and was then a dead letter has two ends, and this one has one.
        assert ends == [job.ends], f"{client.transport}: {versions}"


async def first(client: Client, job: Work) -> tuple[dict[str, Any] | None, bool]:
    """The state that the snapshot brings, and whether it is that of a channel where all is over."""
    frame = await client.frame("welcome", "snapshot", "checkpoint", within=120)
    if frame["type"] == "welcome":
        found = next(each["snapshot"] for each in frame["channels"] if each["channel"] == job.channel)
    else:
        found = frame.get("snapshot", [])
    values = {message["key"]: message["data"] for message in found if message["channel"] == job.channel}
    return values.get(job.name), LAST in values


def version(state: dict[str, Any]) -> tuple[int, ...]:
    end = {"retrying": 1, "succeeded": 1, "failed": 1, "dead_lettered": 2, "cancelled": 2}.get(state["state"], 0)
    return (state["attempt"], end, 0, 0, 0) if end else (state["attempt"], 0, state["run"], state["seq"], 0)


@pytest.mark.parametrize("sizes", [SMALL, pytest.param(FULL, marks=pytest.mark.chaos)], ids=["small", "full"])
@pytest.mark.parametrize("kind", ["memory", "redis", "nats"])
async def test_a_watcher_sees_a_state_and_then_the_last_end_once(kind: str, sizes: Sizes) -> None:
    seed = random.randrange(1 << 30)
    async with AsyncExitStack() as stack:
        broker = "memory://"
        if kind != "memory":
            store: RedisServer | NatsServer = RedisServer() if kind == "redis" else NatsServer()
            stack.callback(store.close)
            await asyncio.to_thread(store.__enter__)
            broker = store.url
        names = ["a"] if kind == "memory" else ["a", "b"]
        nodes = [await stack.enter_async_context(Gateway(node=name, broker=broker, **NODES)) for name in names]
        run = Run(nodes, sizes, random.Random(seed))
        try:
            await run.go()
        except* AssertionError as faults:
            raise AssertionError(f"seed {seed}: {faults.exceptions[0]}") from faults
        if sizes is FULL:
            assert min(run.seen.values()) > run.watchers / 20, run.seen
        for node in nodes:
            assert await asyncio.to_thread(node.stop) == 0, node.stderr
            assert not node.complaints(), node.stderr


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_watcher_that_stops_reading_is_spared_states_and_no_end(gateway: Gateway, transport: str) -> None:
    """More progress than any buffer holds; then three ends, and only then it reads on."""
    jobs, events, run = ("a", "b", "c"), 250, time.time_ns() // 1_000_000
    user = f"slow-{transport}"
    async with gateway.api() as http, await RawStream.open(
        transport, gateway.url, token(user), f"jobs:{user}", receive_buffer=4096
    ) as watcher:  # fmt: skip
        watcher.transport.pause_reading()

        async def tell(job: str, **event: Any) -> int:
            answer = await http.post(f"/v1/jobs/{job}", json={"user": user} | event)
            assert answer.json()["stale"] is False, answer.text
            return int(answer.json()["offset"])

        told: dict[str, list[int]] = {job: [] for job in jobs}
        for seq in range(1, events + 1):
            for job in jobs:
                told[job].append(await tell(job, state="progress", run=run, seq=seq, result="x" * 25_000))
        ends = [await tell(job, state="succeeded") for job in jobs]
        watcher.transport.resume_reading()
        await watcher.reach(ends[-1])
    assert watcher.seen == sorted(set(watcher.seen)), "in order, and each once"
    assert all(offset > 0 for offset in watcher.seen), "and without a reset"
    assert set(ends) <= set(watcher.seen)
    for offsets in told.values():
        assert len(set(offsets) & set(watcher.seen)) < events * 2 / 3, "it was sent what nobody needs any more"
