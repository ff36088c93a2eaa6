"""What the home node of a job does where its worker says nothing: stalled, lost, and wholes that follow their parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from publisher.jobs import JobReporter
from tests.support.clients import Client, connect
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, token
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer

LEASE = 0.6  # seconds
OPTIONS: dict[str, Any] = {"node_ttl": "1s", "drain_wait": 0, "drain": "200ms"}
STORES: dict[str, Callable[[], RedisServer | NatsServer] | None] = {
    "memory": None, "redis": RedisServer, "nats": NatsServer,
}  # fmt: skip


class Nodes:
    """Two nodes on one store; or one, where the store is its own."""

    def __init__(self, store: RedisServer | NatsServer | None, *nodes: Gateway) -> None:
        self.store = store
        self.a, self.b = nodes[0], nodes[-1]

    async def tell(self, node: Gateway, job: str, state: str, **more: Any) -> httpx.Response:
        if state in ("started", "progress"):
            more = {"run": time.time_ns() // 1_000_000, "lease_ms": round(LEASE * 1000)} | more
        async with node.api() as http:
            return await http.post(f"/v1/jobs/{job}", json={"state": state} | more)

    def home(self, user: str) -> Gateway | None:
        """Where a user's jobs are looked after, once both nodes agree."""
        named = set()
        for node in (self.a, self.b):
            with node.http() as http:
                named.add(http.get("/v1/route", params={"user": user}).json()["home"])
                known = http.get("/v1/nodes").json()["nodes"]
            if [each["state"] for each in known] != ["active", "active"]:
                return None
        return {"a": self.a, "b": self.b}[named.pop()] if len(named) == 1 else None


async def make(stack: AsyncExitStack, kind: str, **options: Any) -> Nodes:
    maker = STORES[kind]
    if maker is None:
        return Nodes(None, await stack.enter_async_context(Gateway(node="a", **OPTIONS, **options)))
    store = maker()
    stack.callback(store.close)
    await asyncio.to_thread(store.__enter__)
    made = [await stack.enter_async_context(Gateway(node=n, broker=store.url, **OPTIONS, **options)) for n in "ab"]
    return Nodes(store, *made)


@pytest.fixture(params=list(STORES))
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        nodes = await make(stack, request.param)
        yield nodes
        for node in {nodes.a, nodes.b}:
            assert await asyncio.to_thread(node.stop) == 0, node.stderr
            assert not node.complaints(), node.stderr


async def states(client: Client, *until: str, jobs: Sequence[str], within: float = 10) -> dict[str, list[str]]:
    """The states of jobs as they come, until each of `until` has; `lost` for what the gateway itself failed."""
    found: dict[str, list[str]] = {job: [] for job in jobs}
    left = list(until)
    async with asyncio.timeout(within):
        while left:
            message = await client.message(within)
            if message["key"] in found:
                state = "lost" if message["data"].get("reason") == "lost" else message["data"]["state"]
                found[message["key"]].append(state)
                if state in left:
                    left.remove(state)
    return found


async def test_what_silence_and_parts_make_of_jobs(nodes: Nodes) -> None:
    """On one store after another, in one go: servers are slow to start."""
    async with await connect("websocket", nodes.b.url, token("ann")) as page:
        await page.joined()

        # A worker that dies is stalled after a lease and lost after two; each is stored once. One that gives signs of
        # life is left in peace.
        run = time.time_ns() // 1_000_000
        began = time.monotonic()
        for job in ("dies", "again"):
            await nodes.tell(nodes.a, job, "started", user="ann", run=run, seq=7)
        for seq in range(1, 9):
            await nodes.tell(nodes.a if seq % 2 else nodes.b, "lives", "started", user="ann", run=run, seq=seq)
            await asyncio.sleep(LEASE / 3)
        told = await states(page, "lost", "lost", jobs=("dies", "again", "lives"))
        assert time.monotonic() - began >= 2 * LEASE - 0.1
        assert told["dies"] == told["again"] == ["started", "stalled", "lost"]
        assert set(told["lives"]) == {"started"}

        # A sign of life revives it, and a reported end replaces `lost`. A redelivered attempt outranks it.
        await nodes.tell(nodes.b, "dies", "progress", user="ann", run=run, seq=8)
        answer = await nodes.tell(nodes.a, "again", "succeeded", user="ann")
        assert answer.json()["stale"] is False
        await nodes.tell(nodes.b, "dies", "started", user="ann", run=run + 1, seq=1)
        late = await nodes.tell(nodes.a, "dies", "progress", user="ann", run=run, seq=9)
        assert late.json()["stale"] is True
        await nodes.tell(nodes.a, "dies", "failed", user="ann")
        told = await states(page, "succeeded", "failed", jobs=("dies", "again"))
        assert told == {"dies": ["progress", "started", "failed"], "again": ["succeeded"]}

        # A whole is as far as its parts, wherever they are told of, and ends with the last of them, once.
        parts = [(nodes.a, "p1", 1), (nodes.b, "p2", 3)]
        await nodes.tell(nodes.a, "whole", "queued", user="ann", children=2)
        for node, part, weight in parts:
            await nodes.tell(node, part, "started", user="ann", parent="whole", weight=weight, run=run)
        await nodes.tell(nodes.a, "p2", "progress", user="ann", parent="whole", weight=3, run=run, seq=2,
                         progress={"done": 1, "total": 2}, lease_ms=60_000)  # fmt: skip
        while (message := await page.message())["data"].get("progress", {}).get("done") != 1.5:
            pass
        assert message["data"]["progress"] == {"done": 1.5, "total": 4}
        for node, part, weight in parts:
            await nodes.tell(node, part, "succeeded", user="ann", parent="whole", weight=weight)
        assert (await states(page, "succeeded", jobs=("whole",)))["whole"][-1] == "succeeded"
        await nodes.tell(nodes.a, "p3", "started", user="ann", parent="whole", lease_ms=100)
        await states(page, "stalled", jobs=("p3",))  # so its home has heard of it, and is done with it
        async with nodes.a.api() as http:
            found = (await http.get("/v1/jobs/whole", params={"user": "ann"})).json()["job"]
        assert (found["state"], found["progress"]) == ("succeeded", {"done": 4, "total": 4}), "it came late"


@pytest.mark.parametrize("kind", ["redis", pytest.param("nats", marks=pytest.mark.chaos)])
async def test_no_job_is_called_lost_because_of_what_happened_to_the_gateway(kind: str) -> None:
    """A home that is killed, a store that stands still, and no gateway at all for longer than two leases."""
    async with AsyncExitStack() as stack:
        nodes = await make(stack, kind)
        assert nodes.store is not None
        await nodes.a.until(lambda: nodes.home("ann") is not None, said="the nodes do not agree")
        home = await asyncio.to_thread(nodes.home, "ann")
        other = nodes.b if home is nodes.a else nodes.a
        run, seq = time.time_ns() // 1_000_000, 0

        async def beat(attempt: int = 1) -> bool:
            nonlocal seq
            seq += 1
            try:
                answer = await nodes.tell(other, "job", "started", user="ann", run=run, seq=seq, attempt=attempt)
            except httpx.TransportError:
                return False
            return answer.status_code == 200

        async def beats(count: int) -> None:
            """Signs of life, as a worker's: it goes on whatever is answered."""
            for _ in range(count):
                await beat()
                await asyncio.sleep(LEASE / 4)

        async with await connect("websocket", other.url, token("ann")) as page:
            await beats(3)
            assert home is not None
            await asyncio.to_thread(home.kill)
            await beats(20)  # 3 s: the ring has forgotten it, and the other one is home
            nodes.store.pause()
            await asyncio.sleep(3 * LEASE)
            nodes.store.resume()
            async with asyncio.timeout(20):
                answered = False
                while not answered:
                    answered = await beat()
            await beats(8)
            assert await nodes.tell(other, "job", "retrying", user="ann")
            told = (await states(page, "retrying", jobs=("job",)))["job"]
            assert set(told[:-1]) == {"started"}
            assert len(told) > 20

        await nodes.tell(other, "job", "started", user="ann", run=run, attempt=2)
        await asyncio.to_thread(other.kill)
        await asyncio.sleep(3 * LEASE)
        await asyncio.to_thread(other.start)
        async with await connect("websocket", other.url, token("ann"), snapshot=True) as page:
            [held] = (await page.frame("welcome"))["channels"][1]["snapshot"]
            assert held["data"]["state"] == "started"
            assert await beat(2)
            # And it is home: now the worker dies, and both of its leases are over once.
            assert await states(page, "lost", jobs=("job",)) == {"job": ["started", "stalled", "lost"]}


async def test_ends_that_came_about_while_the_gateway_was_away_replace_lost() -> None:
    """A worker's jobs that end, and that begin and end, while there is no gateway for longer than two leases."""
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        node = await stack.enter_async_context(Gateway(broker=redis.url, **OPTIONS))
        reporter = JobReporter(node.url, API_KEY, lease=0.3)
        stack.callback(reporter.close, 0)
        running, lives, fails = (reporter.job(name, user="ann") for name in ("running", "lives", "fails"))
        running.started()
        lives.started()
        assert await reporter.aflush()
        await asyncio.to_thread(node.kill)
        with fails:
            fails.failed("no such row")
        running.succeeded({"rows": 7})
        await asyncio.sleep(1)  # more than two leases
        await asyncio.to_thread(node.start)
        async with await connect("websocket", node.url, token("ann"), since="earliest") as page:
            last: dict[str, str] = {}
            while last.get("running") != "succeeded" or last.get("fails") != "failed":
                message = await page.message(within=30)
                assert not message["data"].get("reason") or message["key"] != "fails"
                last[message["key"]] = message["data"]["state"]
            assert await reporter.aflush(10)
            lives.succeeded()
            while last["lives"] != "succeeded":
                message = await page.message(within=30)
                last[message["key"]] = message["data"]["state"]
            assert last == {"running": "succeeded", "fails": "failed", "lives": "succeeded"}
