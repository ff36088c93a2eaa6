"""Several nodes on one store: any of them takes any publish, and a cursor of one is good on each."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import TRANSPORTS, connect
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer

ANN = token("ann", ["topic:*"])


@pytest.fixture(scope="module", params=[RedisServer, NatsServer], ids=["redis", "nats"])
def nodes(request: pytest.FixtureRequest) -> Iterator[list[Gateway]]:
    with request.param() as server:
        options: dict[str, Any] = {"broker": server.url, "drain": "1s", "drain_wait": "100ms", "heartbeat": "2s"}
        with Gateway(node="a", **options) as a, Gateway(node="b", **options) as b:
            yield [a, b]
            for node in (a, b):
                assert node.stop() == 0, node.stderr
                assert not node.complaints(), node.stderr


@pytest.mark.parametrize(("first", "then"), list(itertools.product(TRANSPORTS, TRANSPORTS)))
async def test_a_cursor_of_one_node_resumes_on_the_other(nodes: list[Gateway], first: str, then: str) -> None:
    a, b = nodes
    channel = f"topic:{first}-{then}"
    client = await connect(first, a.url, ANN, channels=[channel])
    await client.joined()
    sent = [await asyncio.to_thread(b.publish, channel, {"n": n}) for n in range(3)]
    assert [frame["offset"] for frame in await client.messages(3)] == [receipt["offset"] for receipt in sent]
    await client.cut()
    missed = [await asyncio.to_thread(a.publish, channel, {"n": n}) for n in range(3, 6)]
    async with await connect(then, b.url, ANN, channels=[channel], cursor=client.cursor) as later:
        live = await asyncio.to_thread(a.publish, channel, {"n": 6})
        found = await later.messages(4)
    assert [frame["offset"] for frame in found] == [receipt["offset"] for receipt in (*missed, live)]


async def test_a_connect_ticket_is_good_for_one_node_alone(nodes: list[Gateway]) -> None:
    async with nodes[0].api() as http:
        answer = await http.post("/v1/tickets", json={"use": "connect", "user": "ann", "channels": ["topic:x"]})
    ticket = answer.json()["ticket"]

    async def poll(node: Gateway) -> int:
        async with node.api() as http:
            http.headers.pop("Authorization")
            path = f"/v1/poll?channels=topic:x&wait=0&ticket={ticket}"
            return (await http.get(path)).status_code

    codes = await asyncio.gather(*(poll(node) for node in nodes * 5))
    assert sorted(codes) == [200] + [401] * 9


@pytest.mark.parametrize("since", ["10m", "earliest"])
async def test_a_time_is_found_on_every_store(nodes: list[Gateway], since: str) -> None:
    a, b = nodes
    channel = f"topic:since-{since}"
    sent = [await asyncio.to_thread(a.publish, channel, {"n": n}) for n in range(3)]
    async with await connect("sse", b.url, ANN, channels=[channel], since=since) as client:
        found = await client.messages(3)
    assert [frame["offset"] for frame in found] == [receipt["offset"] for receipt in sent]
