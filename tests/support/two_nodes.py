"""Two nodes on one Redis, each behind a proxy, and a user whose home is the second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from gateway.message import new_id
from tests.support.gateway import Gateway, free_port
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer

WITHIN = 20.0  # seconds
HERE, HOME = "node-a", "node-b"
Pair = tuple[Gateway, Gateway, int]


class Two:
    """`front` is the address that is given and leads to a; `home` is what b advertises."""

    def __init__(self, a: Gateway, b: Gateway, front: Proxy, home: Proxy, user: str) -> None:
        self.a, self.b, self.front, self.home, self.user = a, b, front, home, user
        self.topic = f"topic:{new_id().lower()}"

    async def publish(self, data: object) -> None:
        await asyncio.to_thread(self.a.publish, self.topic, data)


@contextmanager
def pair(**settings: Any) -> Iterator[Pair]:
    """Two nodes, and the port of the second's advertised address, where nobody listens yet."""
    port = free_port()
    options = {"node_ttl": "2s", "jwt_leeway": 0, "heartbeat": "1s", **settings}
    with (
        RedisServer() as redis,
        Gateway(broker=redis.url, node=HERE, **options) as a,
        Gateway(broker=redis.url, node=HOME, advertise=f"http://127.0.0.1:{port}", **options) as b,
    ):
        yield a, b, port
        assert not a.complaints(), a.stderr
        assert not b.complaints(), b.stderr


@asynccontextmanager
async def placed(nodes: Pair) -> AsyncIterator[Two]:
    """The proxies, once the nodes know each other."""
    a, b, port = nodes
    home = Proxy(b.port)
    home.port = port
    async with a.api() as api, Proxy(a.port) as front, home:
        deadline = time.monotonic() + WITHIN
        for user in (f"u{n}" for n in range(10_000)):
            answer = (await api.get("/v1/route", params={"user": user})).raise_for_status().json()
            if answer["address"] == home.url:
                break
            assert time.monotonic() < deadline, "the nodes do not find each other"
        yield Two(a, b, front, home, user)
