"""Three nodes that each believe to be the home of everything: they do each other's work, and no harm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.test_presence import GRACE, enter, gateway, users, watching
from tests.support.gateway import Gateway
from tests.support.redis import RedisServer

ROOM = "room:1"


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Gateway]]:
    with RedisServer() as redis, ExitStack() as stack:
        nodes = [gateway(redis.url, name) for name in "abc"]
        for node in nodes:
            node.module, node.env["RING"] = "tests.support.wrong_ring", "own"
            stack.enter_context(node)
        yield nodes


async def test_three_homes_tell_the_members_that_are_there(nodes: list[Gateway]) -> None:
    a, b, c = nodes
    for name, node in zip("abc", nodes, strict=True):
        with node.http() as http:
            assert http.get("/v1/route", params={"channel": ROOM}).json()["home"] == name
    async with watching([c], ROOM) as watcher:
        names = [f"u{n}" for n in range(30)]
        first = await asyncio.gather(*(enter(node, name, ROOM) for name, node in zip(names, nodes * 10, strict=True)))
        second = await asyncio.gather(*(enter(node, name, ROOM) for name, node in zip(names, [*nodes[1:], a] * 10,
                                                                                      strict=True)))  # fmt: skip
        await watcher.until(lambda: watcher.members.keys() == set(names))
        for client in first:
            await client.close()
        await asyncio.sleep(GRACE + 1)
        assert {event for event, _ in watcher.told} == {"join"}, "each has a connection on another node"
        assert users(a, ROOM) == users(b, ROOM) == set(names)
        for client in second:
            await client.close()
        await watcher.until(lambda: not watcher.members)
        assert users(b, ROOM) == set()
        # Without guards it would be three times as much; a race may tell something again.
        assert 60 <= len(watcher.told) < 90, watcher.told
