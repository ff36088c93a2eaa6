"""Verbs and revocations while something is away: a node's line to its store, the store, what the store held."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from gateway.revocations import REVOKED
from tests.support.cable import Cable
from tests.support.clients import TRANSPORTS, Client, Refused, SSEClient, connect
from tests.support.gateway import Gateway
from tests.support.keys import bearer, token
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer

BACK = 20.0  # seconds until a node that was cut off has found its store again and caught up


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(params=["redis", "nats"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer | NatsServer]:
    with RedisServer() if request.param == "redis" else NatsServer() as server:
        yield server


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def verb(node: Gateway, path: str, **body: Any) -> None:
    async with node.api() as http:
        (await http.post(f"/v1/{path}", json=body)).raise_for_status()


async def join(stack: AsyncExitStack, node: Gateway, transport: str, token: str) -> Client:
    client = await stack.enter_async_context(await connect(transport, node.url, token))
    await client.joined()
    return client


async def told(node: Gateway, token: str) -> tuple[int, str | None]:
    """The status of a poll that does not wait, and the reason of a refusal."""
    async with node.api(token) as http:
        answer = await http.get("/v1/poll?wait=0")
        return answer.status_code, None if answer.status_code == 200 else answer.json()["detail"]


async def until(condition: Callable[[], Awaitable[bool]], within: float = BACK) -> None:
    """Ask every 50 ms, until it holds."""
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110 - another process is asked
            await asyncio.sleep(0.05)


async def until_refused(node: Gateway, token: str) -> None:
    async def refused() -> bool:
        return await told(node, token) == (401, REVOKED)

    await until(refused)


async def test_a_node_that_was_cut_off_does_what_it_missed(
    server: RedisServer | NatsServer, stack: AsyncExitStack
) -> None:
    a = await stack.enter_async_context(Gateway(broker=server.url, node="a", jwt_leeway=0))
    cable = await stack.enter_async_context(Cable(server.port))
    far = server.url.replace(f":{server.port}", f":{cable.port}")
    b = await stack.enter_async_context(Gateway(broker=far, node="b", jwt_leeway=0))
    now = int(time.time())
    old = token("revoked", iat=now - 100)
    ended = [await join(stack, b, transport, token("ended")) for transport in TRANSPORTS]
    revoked = [await join(stack, b, transport, old) for transport in TRANSPORTS]
    moved = await join(stack, b, "websocket", token("moved"))
    ends = [asyncio.create_task(client.ended(within=BACK + 10)) for client in ended + revoked]
    await b.until(lambda: b.metric("ringcast_connections", transport="poll") == 2)

    cable.swallow()
    await verb(a, "disconnect", user="ended")
    await verb(a, "disconnect", user="revoked", revoke_before=now)
    await verb(a, "subscribe", user="moved", channels=["room:1", "room:2"])
    await verb(a, "unsubscribe", user="moved", channels=["room:2"])
    assert (await told(b, old))[0] == 200  # it goes by what it knows
    await asyncio.sleep(0.01)  # so that who comes now did not come at the moment of the verb
    later = await join(stack, b, "websocket", token("ended"))
    assert not any(end.done() for end in ends)

    cable.heal()
    cable.cut()
    assert await asyncio.gather(*ends) == [4001] * 6
    await until_refused(b, old)
    frames = [await moved.frame("subscribed", "unsubscribed", within=BACK) for _ in range(3)]
    assert [(frame["type"], frame["channel"]) for frame in frames] == [
        ("subscribed", "room:1"), ("subscribed", "room:2"), ("unsubscribed", "room:2")
    ]  # fmt: skip
    sent = await asyncio.to_thread(a.publish, "user:ended", 1)
    assert (await later.message())["offset"] == sent["offset"]  # came after the verb was sent
    for node in (a, b):
        assert node.stop() == 0, node.stderr
        assert not node.complaints(), node.stderr


async def test_a_node_that_begins_lets_no_user_in_before_it_knows_what_was_revoked(
    redis: RedisServer, stack: AsyncExitStack
) -> None:
    now = int(time.time())
    old, good = token("ann", iat=now - 100), token("ann", iat=now)
    settings: dict[str, Any] = {"broker": redis.url, "open_within": "1s"}
    a = await stack.enter_async_context(Gateway(node="a", **settings))
    await verb(a, "disconnect", user="ann", revoke_before=now)
    redis.pause()
    b = Gateway(node="b", **settings)
    stack.callback(b.close)
    b.url = f"http://127.0.0.1:{b.port}"
    ready = asyncio.create_task(asyncio.to_thread(b.start))

    async def alive() -> bool:
        try:
            async with b.api() as http:
                return (await http.get("/livez")).status_code == 200
        except httpx.TransportError:
            return False

    await until(alive)
    knocks = [connect(transport, b.url, credential) for transport in TRANSPORTS for credential in (old, good)]
    for refused in await asyncio.gather(*knocks, return_exceptions=True):
        if isinstance(refused, SSEClient):  # whoever may come back later is told so in a stream
            assert (await refused.frame("goodbye"))["code"] == 4104
            await refused.close()
        else:
            assert isinstance(refused, Refused)
            assert refused.code == 4104  # a node that is starting asks nobody who they are
    async with b.api() as http:
        told = (await http.get("/readyz")).json()
        assert told["ready"] is False
        assert "revocations" in [each["reason"] for each in told["reasons"]]
    assert not ready.done()
    redis.resume()
    await ready
    for transport in TRANSPORTS:
        with pytest.raises(Refused) as caught:
            await connect(transport, b.url, old)
        assert caught.value.code == 4001
        await join(stack, b, transport, good)
    for node in (a, b):
        assert node.stop() == 0, node.stderr
        assert not node.complaints(), node.stderr


async def test_what_a_wiped_store_lost_of_the_revocations_the_nodes_tell_it_again(
    redis: RedisServer, stack: AsyncExitStack
) -> None:
    now = int(time.time())
    a = await stack.enter_async_context(Gateway(node="a", broker=redis.url))
    b = await stack.enter_async_context(Gateway(node="b", broker=redis.url))
    users = [f"u{n}" for n in range(20)]
    for user in users:
        await verb(a, "disconnect", user=user, revoke_before=now)
    await until_refused(b, token("u19", iat=now - 1))
    await asyncio.to_thread(redis.wipe)
    with redis.client() as client:
        await a.until(lambda: _revoked(client) >= len(users), 30.0, "the store knows them again")
    for node in (a, b):
        async with asyncio.timeout(BACK):
            # The one that did not tell the store may not have read it yet, and then knows of no token whether it holds.
            while (answer := await told(node, token("u0", iat=now - 1)))[0] == 503:  # noqa: ASYNC110 - as in `until`
                await asyncio.sleep(0.05)
        assert answer == (401, REVOKED)
        assert node.stop() == 0, node.stderr
        assert not node.complaints(), node.stderr
    c = await stack.enter_async_context(Gateway(node="c", broker=redis.url))
    for user in users:
        assert await told(c, token(user, iat=now - 1)) == (401, REVOKED)


def _revoked(client: Any) -> int:
    """How many fields the table of revocations has: its keys, and a few of its own."""
    tables = [key for key in client.scan_iter(count=1000) if b"revocations" in key and client.type(key) == b"hash"]
    return max((int(client.hlen(key)) for key in tables), default=0)


async def test_a_node_that_drains_still_ends_whom_it_is_told_to(redis: RedisServer, stack: AsyncExitStack) -> None:
    a = await stack.enter_async_context(Gateway(node="a", broker=redis.url))
    b = await stack.enter_async_context(Gateway(node="b", broker=redis.url, drain="60s", grace_period="90s"))
    first = await join(stack, b, "websocket", token("bob"))
    clients = [await join(stack, b, transport, token("ann")) for transport in ("websocket", "sse")]
    b.signal(signal.SIGTERM)
    for client in [first, *clients]:
        assert (await client.frame("goodbye"))["code"] == 4100
    await verb(a, "disconnect", user="ann")
    began = time.monotonic()
    assert await asyncio.gather(*(client.ended() for client in clients)) == [4001, 4001]
    assert time.monotonic() - began < 10
    b.signal(signal.SIGTERM)  # hurry
    assert await asyncio.to_thread(b.ended) == 0
    assert not b.complaints(), b.stderr


async def test_a_ticket_of_a_revoked_token_ends_its_stream(redis: RedisServer, stack: AsyncExitStack) -> None:
    now = int(time.time())
    a = await stack.enter_async_context(Gateway(node="a", broker=redis.url))
    b = await stack.enter_async_context(Gateway(node="b", broker=redis.url))
    ends = []
    for node, use in ((a, "connect"), (b, "stream")):
        async with httpx.AsyncClient(base_url=a.url, trust_env=False) as http:
            holder = bearer(token("ann", iat=now - 100))
            ticket = (await http.post("/v1/tickets", json={"use": use}, headers=holder)).json()["ticket"]
        ends.append(asyncio.create_task(_stream(node, ticket)))
    for node in (a, b):
        await node.until(lambda node=node: node.metric("ringcast_connections", transport="sse") == 1)  # type: ignore[misc]
    await verb(b, "disconnect", user="ann", revoke_before=now)
    async with asyncio.timeout(10):
        for text in await asyncio.gather(*ends):
            assert '"type":"goodbye","code":4001,"reconnect":false' in text


async def _stream(node: Gateway, ticket: str) -> str:
    """All of a stream, once it has ended."""
    async with httpx.AsyncClient(base_url=node.url, trust_env=False, timeout=30) as http:
        return (await http.get("/v1/sse", params={"ticket": ticket})).text


async def test_a_roll_call_names_the_nodes_that_do_not_answer(redis: RedisServer, stack: AsyncExitStack) -> None:
    """One that is stopped, and one whose line to the store is dead, also when they have been given up as members."""
    settings: dict[str, Any] = {"node_ttl": "1s"}
    a = await stack.enter_async_context(Gateway(node="a", broker=redis.url, **settings))
    b = await stack.enter_async_context(Gateway(node="b", broker=redis.url, **settings))
    cable = await stack.enter_async_context(Cable(redis.port))
    far = redis.url.replace(f":{redis.port}", f":{cable.port}")
    c = await stack.enter_async_context(Gateway(node="c", broker=far, **settings))
    for node in (a, b, c):
        await join(stack, node, "websocket", token("ann"))

    async def roll() -> tuple[list[str], list[str]]:
        async with a.api() as http:
            answer = (await http.get("/v1/connections?user=ann")).raise_for_status().json()
        return [each["node"] for each in answer["connections"]], answer["unanswered"]

    async def complete() -> bool:
        return await roll() == (["a", "b", "c"], [])

    await until(complete)
    b.signal(signal.SIGSTOP)
    cable.swallow()
    try:
        assert await roll() == (["a"], ["b", "c"])

        async def given_up() -> bool:
            async with a.api() as http:
                return len((await http.get("/v1/nodes")).json()["nodes"]) == 1

        await until(given_up)
        assert await roll() == (["a"], ["b", "c"])
    finally:
        b.signal(signal.SIGCONT)
    cable.heal()
    cable.cut()
    await until(complete)
    assert await asyncio.to_thread(b.stop) == 0  # in good order: nobody misses it

    async def without() -> bool:
        return await roll() == (["a", "c"], [])

    await until(without)


async def test_there_are_only_so_many_revocations(stack: AsyncExitStack) -> None:
    now = int(time.time())
    node = await stack.enter_async_context(Gateway(max_revocations=2))
    async with node.api() as http:
        for user, status in (("a", 200), ("b", 200), ("c", 409), ("a", 200)):
            answer = await http.post("/v1/disconnect", json={"user": user, "revoke_before": now})
            assert answer.status_code == status, answer.text
            refused = await told(node, token(user, iat=now - 1)) == (401, REVOKED)
            assert refused is (status == 200)


async def test_a_revocation_ends_when_no_such_token_is_alive(stack: AsyncExitStack) -> None:
    now = int(time.time())
    node = await stack.enter_async_context(Gateway(max_revocations=1, revocation_ttl="1s"))

    async def over() -> bool:
        return (await told(node, token("a", iat=now - 1)))[0] == 200

    async with node.api() as http:

        async def room() -> bool:
            return (await http.post("/v1/disconnect", json={"user": "b", "revoke_before": now})).status_code == 200

        (await http.post("/v1/disconnect", json={"user": "a", "revoke_before": now})).raise_for_status()
        await until(over)
        await until(room)
