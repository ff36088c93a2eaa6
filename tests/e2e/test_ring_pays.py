"""What the ring is for: with clients placed by it, a node is sent its share of all messages by the store, not all.

Four nodes on one Redis, a client for each user, a message to each, and the real balancers of deploy/ in between. What a
node is sent is what its metric `ringcast_ingested_total` counts. Beside clients placed by their partition (`p`, which
the balancer hashes) and by their home (which nodes name in welcome) stand clients that are placed in turn, and by
hashing the user, as one would without a ring.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from gateway.message import partition_of
from tests.support.balancers import Balancer
from tests.support.gateway import Gateway, free_port
from tests.support.keys import token
from tests.support.raw import RawStream
from tests.support.redis import RedisServer

NODES = 4
AT_ONCE = 100  # clients that open at a time
SETTLED = 60.0  # seconds until all that was followed for clients is let go, at most

Open = Callable[[str], Awaitable[RawStream]]


class Cluster:
    """Four nodes, and how much of what was published each of them is sent."""

    def __init__(self, nodes: list[Gateway], users: int, partitions: int) -> None:
        self.nodes = nodes
        self.users = [f"u{n}" for n in range(users)]
        self.partitions = partitions
        self.ports = [node.port for node in nodes]
        self._own: list[float] = []  # partitions that each node follows without any client

    def partition(self, user: str) -> int:
        return partition_of(f"user:{user}", self.partitions)

    async def share(self, open: Open) -> float:
        """Open a client for each user, publish to each, see that it came; the busiest node's share, 1 being fair."""
        async with self._opened(open) as clients:
            before = await self._each("ringcast_ingested_total")
            offsets = await self._publish()
            for client in clients.values():
                await client.reach(offsets[client.channel])
                assert client.seen == [offsets[client.channel]], "each message once, wherever its client is"
            after = await self._each("ringcast_ingested_total")
        return max(b - a for a, b in zip(before, after, strict=True)) / (len(self.users) / NODES)

    async def homes(self, url: str) -> dict[str, str]:
        """Where each user's client is best placed, as the welcome says wherever it is now."""
        async with self._opened(lambda user: through(url, user)) as clients:
            heads = {user: client.head for user, client in clients.items()}
        nodes = {node.env["RINGCAST_NODE"]: node.url for node in self.nodes}
        return {user: _told(head, "home") or nodes[_told(head, "node")] for user, head in heads.items()}

    @asynccontextmanager
    async def _opened(self, open: Open) -> AsyncIterator[dict[str, RawStream]]:
        """A client for each user, on nodes that follow nothing for others."""
        await self._settled()
        turns = asyncio.Semaphore(AT_ONCE)
        clients: dict[str, RawStream] = {}

        async def opened(user: str) -> None:
            async with turns:
                clients[user] = await open(user)

        try:
            await asyncio.gather(*map(opened, self.users))
            yield clients
        finally:
            for client in clients.values():
                await client.close()

    async def _each(self, metric: str) -> list[float]:
        return [await asyncio.to_thread(node.metric, metric) for node in self.nodes]

    async def _settled(self) -> None:
        """Wait until no node follows a partition any more that clients before these had there."""
        deadline = time.monotonic() + SETTLED
        while (followed := await self._each("ringcast_partitions")) != self._own:
            self._own = self._own or followed
            assert time.monotonic() < deadline, (followed, self._own)
            await asyncio.sleep(0.05)

    async def _publish(self) -> dict[str, int]:
        lines = "".join(json.dumps({"user": user, "data": user}) + "\n" for user in self.users)
        async with self.nodes[0].api() as api:
            answer = await api.post("/v1/publish", content=lines, headers={"Content-Type": "application/x-ndjson"})
        receipts = [json.loads(line)["results"][0] for line in answer.raise_for_status().text.splitlines()]
        return {receipt["channel"]: receipt["offset"] for receipt in receipts}


@asynccontextmanager
async def cluster(users: int, partitions: int) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        redis = await asyncio.to_thread(stack.enter_context, RedisServer())
        nodes = []
        for name in "abcd"[:NODES]:
            port = free_port()
            node = Gateway(
                port=port, advertise=f"http://127.0.0.1:{port}", node=f"node-{name}", broker=redis.url,
                linger="200ms", node_ttl="30s", partitions=partitions, connections_per_address=10_000,
                requests_per_second=100_000, heartbeat="60s",
            )  # fmt: skip
            nodes.append(await stack.enter_async_context(node))
        made = Cluster(nodes, users, partitions)
        for node in nodes:
            await node.until(lambda node=node: _members(node) == NODES, 20, "the nodes know each other")  # type: ignore[misc]
        yield made
        for node in nodes:
            assert not node.complaints(), node.stderr


def _members(node: Gateway) -> int:
    with node.http() as http:
        return sum(bool(member["home_of"]) for member in http.get("/v1/nodes").raise_for_status().json()["nodes"])


def _told(head: bytes, field: str) -> str:
    """What a welcome says; nothing where it does not."""
    found = re.search(rb'"%b":"(.*?)"' % field.encode(), head)
    return found[1].decode() if found else ""


async def through(url: str, user: str, query: str = "") -> RawStream:
    return await RawStream.open("websocket", url, token(user), f"user:{user}", query=query)


def by_user(text: str) -> str:
    """The same balancer, hashing another parameter: the user."""
    return text.replace("$arg_p", "$arg_user").replace("urlp(p)", "urlp(user)").replace("[0-9]{1,5}", ".+")


async def shares(on: Cluster, name: str, *more: str) -> dict[str, float]:
    """The busiest node's share under each way of placing clients; `more` balancers hash the partition too."""
    found = {}
    with Balancer(name, on.ports) as balancer:
        found["in turn"] = await on.share(lambda user: through(balancer.url, user))
        found[f"p, {name}"] = await on.share(lambda user: through(balancer.url, user, f"p={on.partition(user)}"))
        homes = await on.homes(balancer.url)
        found["home"] = await on.share(lambda user: through(homes[user], user))
    with Balancer(name, on.ports, by_user) as balancer:
        found["user"] = await on.share(lambda user: through(balancer.url, user, f"user={user}"))
    for other in more:
        with Balancer(other, on.ports) as balancer:
            found[f"p, {other}"] = await on.share(lambda user: through(balancer.url, user, f"p={on.partition(user)}"))
    return found


def said(found: dict[str, float], users: int, partitions: int) -> str:
    ways = ", ".join(f"{way} {share:.2f}" for way, share in found.items())
    return f"{users} users, {partitions} partitions, {NODES} nodes: the busiest node's share is {ways}"


async def test_placed_clients_leave_each_node_its_share() -> None:
    """HAProxy's hash of these partitions is the same each time."""
    async with cluster(users=400, partitions=192) as on:
        found = await shares(on, "haproxy")
    told = said(found, 400, 192)
    print(told)
    assert found["p, haproxy"] <= 1.5, told
    assert found["home"] <= 1.5, told
    assert min(found["in turn"], found["user"]) > 1.8, told


@pytest.mark.chaos
async def test_five_thousand_placed_clients_leave_each_node_its_share() -> None:
    async with cluster(users=5000, partitions=1024) as on:
        found = await shares(on, "nginx", "haproxy")
    told = said(found, 5000, 1024)
    print(told)
    assert max(found[way] for way in ("p, nginx", "p, haproxy", "home")) <= 1.5, told
    assert min(found["in turn"], found["user"]) > 2.5, told
