"""What a backend does to a user's connections, wherever they are: two nodes on each store, and one node by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import httpx
import jwt
import pytest

from gateway.message import partition_of
from gateway.revocations import REVOKED
from tests.support.clients import TRANSPORTS, Client, Refused, WebSocketClient, connect
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, HMAC_KEY, token
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer

NAMES = iter(f"u{n}" for n in range(1_000_000))


@pytest.fixture(scope="module", params=["memory", "redis", "nats"])
def nodes(request: pytest.FixtureRequest) -> Iterator[list[Gateway]]:
    with ExitStack() as stack:
        if request.param == "memory":
            gateways = [Gateway()]
        elif request.param == "redis":
            url = stack.enter_context(RedisServer()).url
            gateways = [Gateway(broker=url, node=name) for name in "ab"]
        else:
            url = stack.enter_context(NatsServer()).url
            gateways = [Gateway(broker=url, node=name) for name in "ab"]
        for gateway in gateways:
            stack.enter_context(gateway)
        yield gateways
        for gateway in gateways:
            assert gateway.stop() == 0, gateway.stderr
            assert not gateway.complaints(), gateway.stderr


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def everywhere(stack: AsyncExitStack, nodes: list[Gateway], token: str, **wanted: Any) -> list[Client]:
    """A connection over each transport to each node, each of which has been told where it stands."""
    clients = []
    for node in nodes:
        for transport in TRANSPORTS:
            client = await stack.enter_async_context(await connect(transport, node.url, token, **wanted))
            await client.joined()
            clients.append(client)
    return clients


async def websocket(stack: AsyncExitStack, node: Gateway, token: str) -> WebSocketClient:
    client = await stack.enter_async_context(await connect("websocket", node.url, token))
    assert isinstance(client, WebSocketClient)
    await client.joined()
    return client


async def verb(node: Gateway, path: str, **body: Any) -> dict[str, Any]:
    async with node.api() as http:
        answer: dict[str, Any] = (await http.post(f"/v1/{path}", json=body)).raise_for_status().json()
    return answer


async def waiting(nodes: list[Gateway], polls: int) -> None:
    """Until so many polls wait at each node: one that is on its way is no connection yet."""
    for node in nodes:
        await node.until(lambda node=node: node.metric("ringcast_connections", transport="poll") >= polls)  # type: ignore[misc]


async def test_a_disconnect_ends_every_connection_of_the_user_and_no_other(
    nodes: list[Gateway], stack: AsyncExitStack
) -> None:
    user, other = next(NAMES), next(NAMES)
    clients = await everywhere(stack, nodes, token(user))
    others = await everywhere(stack, nodes, token(other))
    ends = [asyncio.create_task(client.ended()) for client in clients]
    await waiting(nodes, 1)
    receipt = await verb(nodes[0], "disconnect", user=user, hint="Your account was closed")
    assert receipt["channel"] == f"ringcast:user.{user}"
    assert await asyncio.gather(*ends) == [4001] * len(clients)
    goodbyes = [client.goodbye for client in clients if client.transport == "sse"]
    for goodbye in goodbyes:
        assert goodbye is not None
        assert (goodbye["hint"], goodbye["reconnect"]) == ("Your account was closed", False)

    sent = await asyncio.to_thread(nodes[-1].publish, f"user:{other}", 1)
    for client in others:
        assert (await client.message())["offset"] == sent["offset"]
    for client in await everywhere(stack, nodes, token(user)):  # nothing was revoked: back again
        assert client.goodbye is None


@pytest.mark.parametrize(("code", "close"), [("forbidden", 4003), ("token_expired", 4200), ("unavailable", 4101)])
async def test_a_disconnect_says_whether_to_come_back(
    nodes: list[Gateway], stack: AsyncExitStack, code: str, close: int
) -> None:
    user = next(NAMES)
    clients = await everywhere(stack, nodes, token(user))
    ends = [asyncio.create_task(client.ended()) for client in clients]
    await waiting(nodes, 1)
    await verb(nodes[-1], "disconnect", user=user, code=code)
    assert await asyncio.gather(*ends) == [close] * len(clients)


async def refused(node: Gateway, token: str) -> None:
    """Wait for this node to have heard of it; then nobody gets in with the token, by any door."""

    def lets_in() -> bool:
        with node.http(token) as http:
            answer = http.get("/v1/poll?wait=0")
        assert answer.status_code != 401 or answer.json()["detail"] == REVOKED
        return answer.status_code != 401

    await node.until(lambda: not lets_in(), 5.0, "a revoked token is refused")
    for transport in TRANSPORTS:
        with pytest.raises(Refused) as caught:
            await connect(transport, node.url, token)
        assert caught.value.code == 4001
    with pytest.raises(Refused):
        await connect("websocket", node.url, token, body=True)
    async with node.api(token) as http:
        for answer in (
            await http.post("/v1/publish", json={"channel": "topic:x", "data": 1}),
            await http.post("/v1/tickets", json={"use": "connect"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised")


async def ticket(node: Gateway, credential: str, **wanted: Any) -> str:
    async with node.api(credential) as http:
        text: str = (await http.post("/v1/tickets", json=wanted)).raise_for_status().json()["ticket"]
    return text


async def presented(node: Gateway, path: str, ticket: str) -> tuple[int, str | None]:
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:
        answer = await http.get(f"/v1/{path}", params={"ticket": ticket})
        return answer.status_code, answer.json().get("detail")


async def test_a_revocation_ends_what_the_token_opened_and_refuses_it_everywhere_until_there_is_a_new_one(
    nodes: list[Gateway], stack: AsyncExitStack
) -> None:
    user, other = next(NAMES), next(NAMES)
    now = int(time.time())
    old = token(user, publish=["topic:*"], iat=now - 100)
    clients = await everywhere(stack, nodes, old)
    tickets = [await ticket(nodes[-1], old, use=use) for use in ("connect", "stream", "stream")]
    made = await ticket(nodes[0], API_KEY, use="stream", user=user)
    others = await everywhere(stack, nodes, token(other, iat=now - 100))
    ends = [asyncio.create_task(client.ended()) for client in clients]
    await waiting(nodes, 1)

    receipt = await verb(nodes[0], "disconnect", user=user, revoke_before=now)
    assert (receipt["channel"], receipt["duplicate"]) == ("ringcast:revocations", False)
    assert await asyncio.gather(*ends) == [4001] * len(clients)
    for node in nodes:
        await refused(node, old)
        await refused(node, jwt.encode({"sub": user, "exp": now + 600}, HMAC_KEY, "HS256"))  # issued who knows when
    for node, path, text in zip((nodes[0], nodes[-1], nodes[-1]), ("poll", "sse", "poll"), tickets, strict=True):
        assert await presented(node, path, text) == (401, REVOKED)
    # The backend's own ticket was made after that moment, and so was the new token.
    assert await presented(nodes[-1], "poll", made) == (200, None)
    back = await everywhere(stack, nodes, token(user, iat=now))
    sent = await asyncio.to_thread(nodes[0].publish, f"user:{user}", 1)
    for client in back:
        assert (await client.message())["offset"] == sent["offset"]
    for client in others:
        assert client.goodbye is None

    again = await verb(nodes[-1], "disconnect", user=user, revoke_before=now - 50)  # less than is revoked already
    assert (again["offset"], again["duplicate"]) == (receipt["offset"], True)
    await refused(nodes[-1], old)


async def test_a_session_that_took_a_new_token_survives_the_revocation_of_its_old_one(
    nodes: list[Gateway], stack: AsyncExitStack
) -> None:
    user, now = next(NAMES), int(time.time())
    stays, goes = [await websocket(stack, node, token(user, iat=now - 100)) for node in (nodes[0], nodes[-1])]
    await stays.send({"type": "connect", "token": token(user, iat=now)})
    await stays.frame("welcome")
    await verb(nodes[-1], "disconnect", user=user, revoke_before=now)
    assert await goes.ended() == 4001
    await refused(nodes[0], token(user, iat=now - 1))
    sent = await asyncio.to_thread(nodes[-1].publish, f"user:{user}", 1)
    assert (await stays.message())["offset"] == sent["offset"]
    await stays.send({"type": "connect", "token": token(user, iat=now - 1)})
    assert await stays.ended() == 4001


async def test_users_are_subscribed_and_unsubscribed_by_their_backend(
    nodes: list[Gateway], stack: AsyncExitStack
) -> None:
    user = next(NAMES)
    room, news = f"room:{user}", f"topic:{user}"
    lines = [client for client in await everywhere(stack, nodes, token(user)) if client.transport != "poll"]
    await verb(nodes[0], "subscribe", user=user, channels=[room, news])
    for client in lines:
        told = {(await client.frame("subscribed"))["channel"] for _ in range(2)}
        assert told == {room, news}
    sent = await asyncio.to_thread(nodes[-1].publish, room, 1)
    for client in lines:
        assert (await client.message())["offset"] == sent["offset"]

    await verb(nodes[-1], "subscribe", user=user, channels=[news])  # again: nothing happens
    await verb(nodes[-1], "unsubscribe", user=user, channels=[room, "topic:never"])
    for client in lines:
        frame = await client.frame("subscribed", "unsubscribed")
        assert (frame["type"], frame["channel"]) == ("unsubscribed", room)
    await asyncio.to_thread(nodes[0].publish, room, 2)
    sent = await asyncio.to_thread(nodes[0].publish, news, 3)
    for client in lines:
        assert (await client.message())["offset"] == sent["offset"]
    # It lasts as long as the connection: who comes back has what it asks for and its token permits.
    later = await stack.enter_async_context(await connect("websocket", nodes[0].url, token(user)))
    assert set(await later.joined()) == {f"user:{user}", f"jobs:{user}"}


async def test_a_new_token_takes_back_what_the_backend_subscribed_and_it_does_not_permit(
    nodes: list[Gateway], stack: AsyncExitStack
) -> None:
    user = next(NAMES)
    client = await websocket(stack, nodes[0], token(user))
    await verb(nodes[-1], "subscribe", user=user, channels=[f"room:{user}", f"topic:{user}"])
    for _ in range(2):
        await client.frame("subscribed")
    await client.send({"type": "connect", "token": token(user, ["topic:*"])})
    assert (await client.frame("unsubscribed"))["channel"] == f"room:{user}"
    assert {each["channel"] for each in (await client.frame("welcome"))["channels"]} == {
        f"user:{user}", f"jobs:{user}", f"topic:{user}"
    }  # fmt: skip


async def test_a_waiting_poll_is_told_of_its_subscriptions_and_goes_on_from_them(nodes: list[Gateway]) -> None:
    user = next(NAMES)
    room = f"room:{user}"
    async with nodes[-1].api(token(user, ["room:*"])) as http:
        cursor = (await http.get("/v1/poll")).json()["cursor"]
        poll = asyncio.create_task(http.get("/v1/poll", params={"wait": 20, "cursor": cursor}))
        await waiting(nodes[-1:], 1)
        await verb(nodes[0], "subscribe", user=user, channels=[room])
        answer = (await poll).json()
        assert [(each["type"], each["channel"]) for each in answer["subscribed"]] == [("subscribed", room)]
        assert (answer["messages"], answer["resets"]) == ([], [])
        sent = await asyncio.to_thread(nodes[0].publish, room, 1)
        wanted = {"channels": room, "cursor": answer["cursor"]}
        answer = (await http.get("/v1/poll", params=wanted)).json()
        assert [message["offset"] for message in answer["messages"]] == [sent["offset"]]
        poll = asyncio.create_task(http.get("/v1/poll", params=wanted | {"wait": 20, "cursor": answer["cursor"]}))
        await waiting(nodes[-1:], 1)
        await verb(nodes[0], "unsubscribe", user=user, channels=[room])
        assert [each["channel"] for each in (await poll).json()["unsubscribed"]] == [room]


async def listed(node: Gateway, user: str) -> dict[str, Any]:
    async with node.api() as http:
        answer: dict[str, Any] = (await http.get("/v1/connections", params={"user": user})).raise_for_status().json()
    return answer


async def test_a_users_connections_are_listed_with_their_nodes(nodes: list[Gateway], stack: AsyncExitStack) -> None:
    user, nobody = next(NAMES), next(NAMES)
    names = sorted(node.ready_line.split("node=")[1].split()[0] for node in nodes)
    clients = await everywhere(stack, nodes, token(user, ["topic:*"]), channels=["topic:x"])
    polls = [asyncio.create_task(client.receive()) for client in clients if client.transport == "poll"]
    await waiting(nodes, 1)
    for node in nodes:
        answer = await listed(node, user)
        assert (answer["user"], answer["total"], answer["unanswered"]) == (user, len(clients), [])
        assert sorted((each["node"], each["transport"]) for each in answer["connections"]) == [
            (name, transport) for name in names for transport in ("poll", "sse", "websocket")
        ]
        assert {each["subscriptions"] for each in answer["connections"]} == {3}
        assert await listed(node, nobody) == {"user": nobody, "total": 0, "connections": [], "unanswered": []}
    for poll in polls:
        poll.cancel()
    await asyncio.gather(*polls, return_exceptions=True)


async def test_the_same_verb_twice_is_one(nodes: list[Gateway]) -> None:
    user = next(NAMES)
    async with nodes[0].api() as http:
        body, headers = {"user": user, "channels": ["topic:x"]}, {"Idempotency-Key": f"sub-{user}"}
        first, second = [(await http.post("/v1/subscribe", json=body, headers=headers)).json() for _ in range(2)]
    assert (second["offset"], first["duplicate"], second["duplicate"]) == (first["offset"], False, True)


@pytest.mark.parametrize(("path", "body", "code"), [
    ("disconnect", {}, "bad_request"),
    ("disconnect", {"user": ""}, "bad_request"),
    ("disconnect", {"user": "a b"}, "bad_request"),
    ("disconnect", {"user": "job.1"}, "bad_request"),
    ("disconnect", {"user": "u", "why": 1}, "bad_request"),
    ("disconnect", {"user": "u", "code": "bad_cursor"}, "bad_request"),
    ("disconnect", {"user": "u", "code": 4001}, "bad_request"),
    ("disconnect", {"user": "u", "hint": "x" * 121}, "bad_request"),
    ("disconnect", {"user": "u", "hint": "a\nb"}, "bad_request"),
    ("disconnect", {"user": "u", "revoke_before": 0}, "bad_request"),
    ("disconnect", {"user": "u", "revoke_before": 1e12}, "bad_request"),
    ("disconnect", {"user": "u", "revoke_before": "now"}, "bad_request"),
    ("disconnect", {"user": "u", "revoke_before": 1, "code": "forbidden"}, "bad_request"),
    ("subscribe", {"user": "u"}, "bad_request"),
    ("subscribe", {"user": "u", "channels": []}, "bad_request"),
    ("subscribe", {"user": "u", "channels": ["topic"]}, "bad_channel"),
    ("subscribe", {"user": "u", "channels": ["topic:*"]}, "bad_channel"),
    ("subscribe", {"user": "u", "channels": ["ringcast:nodes"]}, "forbidden"),
    ("unsubscribe", {"user": "u", "channels": [f"topic:{n}" for n in range(101)]}, "too_many_channels"),
    ("unsubscribe", {"user": "u", "channels": "topic:x"}, "bad_request"),
])  # fmt: skip
async def test_what_a_verb_does_not_take(nodes: list[Gateway], path: str, body: dict[str, Any], code: str) -> None:
    async with nodes[0].api() as http:
        answer = await http.post(f"/v1/{path}", json=body)
    assert answer.json()["code"] == code, answer.text


async def test_verbs_are_for_api_keys(nodes: list[Gateway]) -> None:
    async with nodes[0].api(token("u", ["*"], ["*"])) as http:
        for path in ("disconnect", "subscribe", "unsubscribe"):
            answer = await http.post(f"/v1/{path}", json={"user": "u", "channels": ["topic:x"]})
            assert answer.json()["code"] == "forbidden"
        assert (await http.get("/v1/connections?user=u")).json()["code"] == "forbidden"
        assert (await http.post("/v1/subscribe", content=b"{}", headers={"Authorization": ""})).status_code == 401
    async with nodes[0].api() as http:
        large = b'{"user": "u", "channels": ["' + b"x" * (64 << 10) + b'"]}'
        assert (await http.post("/v1/subscribe", content=large)).json()["code"] == "too_large"
        for query in ("", "?user=a%20b", "?user="):
            assert (await http.get(f"/v1/connections{query}")).json()["code"] == "bad_request"
        plain = await http.post("/v1/subscribe", content=b"u", headers={"Content-Type": "text/plain"})
        assert plain.json()["code"] == "unsupported_media_type"


async def test_hearing_of_a_user_costs_no_subscription_of_its_own(stack: AsyncExitStack) -> None:
    with RedisServer() as redis, Gateway(broker=redis.url, partitions=2) as node, redis.client() as client:

        def subscribed() -> int:
            stats: dict[str, Any] = client.info("commandstats")
            return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("subscribe", "ssubscribe"))

        users = [next(NAMES) for _ in range(40)]
        for partition in range(2):
            first = next(user for user in users if partition_of(f"user:{user}", 2) == partition)
            await websocket(stack, node, token(first))
        before = subscribed()
        clients = [await websocket(stack, node, token(user)) for user in users]
        assert subscribed() == before > 0
        await verb(node, "disconnect", user=users[-1])
        assert await clients[-1].ended() == 4001
