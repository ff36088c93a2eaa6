"""A running node that does not hear all of its store: a message dropped on the way, and a store out of reach."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.cable import Cable
from tests.support.clients import TRANSPORTS, Client, connect
from tests.support.gateway import Gateway, free_port
from tests.support.keys import token
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer

ANN = token("ann", ["topic:*"])
CHECK = 2.0  # seconds between two checks
NEWS = "topic:news"


@dataclass
class Pair:
    """Two nodes on one store: the first by a cable that can break, the other straight."""

    server: RedisServer | NatsServer
    cable: Cable
    far: Gateway
    near: Gateway

    async def publish(self, data: Any) -> int:
        """By the node that hears its store."""
        receipt = await asyncio.to_thread(self.near.publish, NEWS, data)
        return int(receipt["offset"])

    def leave(self) -> None:
        """The store ends in good order."""
        if isinstance(self.server, NatsServer):
            self.server.stop()
            return
        with self.server.client() as client:
            client.save()
        self.server.kill()


@pytest.fixture(params=[RedisServer, NatsServer], ids=["redis", "nats"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    with request.param() as server:
        async with AsyncExitStack() as stack:
            cable = await stack.enter_async_context(Cable(server.port))
            # Nodes that tell of themselves seldom, so that nothing else is on the line when something is dropped.
            options: dict[str, Any] = {"check_interval": f"{CHECK:g}s", "node_ttl": "60s", "heartbeat": "2s"}
            broken = server.url.replace(str(server.port), str(cable.port))
            far = await stack.enter_async_context(Gateway(broker=broken, node="far", **options))
            near = await stack.enter_async_context(Gateway(broker=server.url, node="near", **options))
            yield Pair(server, cable, far, near)
            assert not [*far.complaints(), *near.complaints()]


async def clients_of(pair: Pair, stack: AsyncExitStack) -> list[Client]:
    """One over each transport, at the node by the cable, at the live end."""
    found = [
        await stack.enter_async_context(await connect(transport, pair.far.url, ANN, channels=[NEWS]))
        for transport in TRANSPORTS
    ]
    for client in found:
        await client.joined()
    return found


def once(marker: bytes) -> Callable[[bytes], bool]:
    """True of the first piece that holds the marker."""
    seen: list[bytes] = []

    def drop(data: bytes) -> bool:
        if marker in data:
            seen.append(data)
        return marker in data and len(seen) == 1

    return drop


async def test_a_lost_last_message_reaches_every_client(pair: Pair) -> None:
    """The store announced it, the network lost it, and no other comes after it."""
    async with AsyncExitStack() as stack:
        clients = await clients_of(pair, stack)
        first = await pair.publish("first")
        for client in clients:
            assert (await client.message())["offset"] == first
        pair.cable.drop = once(b"the last one")
        last = await pair.publish("the last one")
        published = time.monotonic()
        for client in clients:
            assert (await client.message(within=CHECK + 5))["offset"] == last
        assert pair.cable.dropped == 1
        assert time.monotonic() - published < CHECK + 5


def answers(node: Gateway, path: str) -> int:
    with node.http() as http:
        return http.get(path).status_code


async def becomes_unready_and_lives(node: Gateway) -> None:
    await node.until(lambda: answers(node, "/readyz") == 503, 10.0, "a node without its store is unready")
    for _ in range(5):
        assert answers(node, "/livez") == 200
        await asyncio.sleep(0.2)
    assert node.metric("ringcast_connections", transport="websocket") == 1


async def test_a_store_out_of_reach_makes_a_node_unready_and_costs_no_client(pair: Pair) -> None:
    async with AsyncExitStack() as stack:
        # On the connections of before, which raise if they end.
        receiving = [asyncio.create_task(client.messages(4, within=60)) for client in await clients_of(pair, stack)]
        pair.cable.swallow()
        await becomes_unready_and_lives(pair.far)
        missed = [await pair.publish(n) for n in range(3)]
        pair.cable.heal()
        await pair.far.until(lambda: answers(pair.far, "/readyz") == 200, 20.0, "it heals by itself")
        live = await pair.publish("live")
        for frames in await asyncio.gather(*receiving):
            assert [frame["offset"] for frame in frames] == [*missed, live]


async def test_a_store_that_comes_back_elsewhere_is_found(pair: Pair) -> None:
    """What the broker's URL names leads to another address from then on."""
    async with AsyncExitStack() as stack:
        receiving = [asyncio.create_task(client.messages(2, within=60)) for client in await clients_of(pair, stack)]
        first = await pair.publish("first")
        await asyncio.to_thread(pair.leave)
        await becomes_unready_and_lives(pair.far)
        pair.server.port = pair.cable.far = free_port()
        await asyncio.to_thread(pair.server.start)
        await pair.far.until(lambda: answers(pair.far, "/readyz") == 200, 20.0, "it heals by itself")
        then = (await asyncio.to_thread(pair.far.publish, NEWS, "then"))["offset"]
        for frames in await asyncio.gather(*receiving):
            assert [frame["offset"] for frame in frames] == [first, then]
