"""Presence on one node, and what of it is a matter of settings and credentials."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.clients import WebSocketClient, connect
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, token

TOML = "[channels.room]\npresence = true\n[channels.user]\npresence = true\n"


@pytest.fixture(scope="module")
def node() -> Iterator[Gateway]:
    with Gateway(toml=TOML, presence_grace="200ms", presence_members=2) as gateway:
        yield gateway
        assert gateway.stop() == 0, gateway.stderr
        assert not gateway.complaints(), gateway.stderr


def users(node: Gateway, room: str) -> set[str]:
    with node.http() as http:
        members = http.get("/v1/presence", params={"channel": room}).raise_for_status().json()["members"]
    return {member["user"] for member in members}


async def test_who_comes_when_a_room_is_full_is_shown_once_another_leaves(node: Gateway) -> None:
    clients = {}
    for number in range(4):
        user = f"u{number}"
        clients[user] = await connect("websocket", node.url, token(user, ["room:*"]), channels=["room:full"])
        expected = {"u0", "u1"} if number else {"u0"}
        await node.until(lambda expected=expected: users(node, "room:full") == expected)  # type: ignore[misc]
    receipt = node.publish("room:full", 1)
    for client in clients.values():  # who is not shown is served all the same
        assert (await client.message())["offset"] == receipt["offset"]
    await clients["u0"].close()
    await node.until(lambda: users(node, "room:full") == {"u1", "u2"})
    await clients["u3"].close()
    await clients["u1"].close()
    await node.until(lambda: users(node, "room:full") == {"u2"})
    await clients["u2"].close()
    await node.until(lambda: not users(node, "room:full"))


async def test_backends_and_those_who_only_look_on_are_not_there(node: Gateway) -> None:
    async with await connect("websocket", node.url, API_KEY, channels=["room:quiet"]) as backend:
        await backend.joined()
        watcher = await connect("sse", node.url, token("eve", ["room:*"]), channels=["presence:room:quiet"])
        ann = await connect("sse", node.url, token("ann", ["room:*"]), channels=["room:quiet"])
        assert (await watcher.message())["key"] == "ann"
        assert users(node, "room:quiet") == {"ann"}
        await ann.close()
        await watcher.close()


async def test_a_poll_that_waits_is_there_and_one_that_looks_in_is_not(node: Gateway) -> None:
    watcher = await connect("websocket", node.url, token("eve", ["room:*"]), channels=["presence:room:polls"])
    async with node.api(token("ann", ["room:*"])) as ann, node.api(token("bob", ["room:*"])) as bob:
        await ann.get("/v1/poll", params={"channels": "room:polls", "wait": 0})
        cursor = (await bob.get("/v1/poll", params={"channels": "room:polls", "wait": 0})).json()["cursor"]
        waited = await bob.get("/v1/poll", params={"channels": "room:polls", "wait": 1, "cursor": cursor})
        assert waited.status_code == 204
        told = [await watcher.message(), await watcher.message()]
        assert [(frame["event"], frame["key"]) for frame in told] == [("join", "bob"), ("leave", "bob")]
    await watcher.close()


async def test_a_member_is_shown_with_the_info_of_who_came_last(node: Gateway) -> None:
    watcher = await connect("websocket", node.url, token("eve", ["room:*"]), channels=["presence:room:faces"])
    first = await connect("sse", node.url, token("ann", ["room:*"], info={"name": "Ann"}), channels=["room:faces"])
    assert (await watcher.message())["data"] == {"user": "ann", "info": {"name": "Ann"}}
    second = await connect("sse", node.url, token("ann", ["room:*"], info={"name": "Anna"}), channels=["room:faces"])
    told = await watcher.message()
    assert (told["event"], told["data"]) == ("update", {"user": "ann", "info": {"name": "Anna"}})
    await second.close()
    await first.close()
    told = await watcher.message()  # and no update back to the first one's
    assert (told["event"], told["data"]) == ("leave", {"user": "ann", "info": {"name": "Anna"}})
    await watcher.close()


async def test_the_gateways_own_tables_are_nobodys_to_read(node: Gateway) -> None:
    async with node.api() as http:
        for path in ("/v1/snapshot", "/v1/history"):
            assert (await http.get(path, params={"channel": "ringcast:presence.0"})).json()["code"] == "forbidden"
        assert (await http.get("/v1/route", params={"channel": "ringcast:presence.x"})).status_code == 200


async def test_a_user_is_there_by_its_own_channel_and_seen_by_its_backend(node: Gateway) -> None:
    async with await connect("websocket", node.url, token("ann", [])) as client:
        await client.joined()
        await node.until(lambda: users(node, "user:ann") == {"ann"})
        async with node.api(token("bob", [])) as http:
            refused = await http.get("/v1/presence", params={"channel": "user:ann"})
            assert refused.json()["code"] == "forbidden"


async def test_the_info_of_a_ticket_or_a_new_token_is_shown(node: Gateway) -> None:
    ask = {"use": "connect", "user": "ann", "channels": ["room:*"], "info": {"name": "Ann"}}
    async with node.api() as http:
        ticket = (await http.post("/v1/tickets", json=ask)).raise_for_status().json()["ticket"]
        told = await http.post("/v1/tickets", json={"use": "connect", "info": 1})
        assert told.json()["code"] == "bad_request"
        refused = await http.post("/v1/tickets", json=ask | {"info": "x" * 2000})
        assert refused.json()["code"] == "bad_request"
    async with node.api(token("ann", [])) as http:
        told = await http.post("/v1/tickets", json={"use": "connect", "info": {"name": "Queen"}})
        assert told.json()["code"] == "forbidden"
    watcher = await connect("websocket", node.url, token("eve", ["room:*"]), channels=["presence:room:info"])
    client = await connect("websocket", node.url, token("ann", ["room:*"], info="first"), channels=["room:info"])
    assert (await watcher.message())["data"] == {"user": "ann", "info": "first"}
    assert isinstance(client, WebSocketClient)
    await client.send({"type": "connect", "token": token("ann", ["room:*"], info="second")})
    changed = await watcher.message()
    assert (changed["event"], changed["data"]) == ("update", {"user": "ann", "info": "second"})
    await client.close()
    left = await watcher.message()
    assert (left["event"], left["deleted"], left["data"]["user"]) == ("leave", True, "ann")
    async with node.api() as http:
        http.headers.pop("Authorization")
        (await http.get("/v1/poll", params={"channels": "room:info", "ticket": ticket})).raise_for_status()
    assert (await watcher.message())["data"] == {"user": "ann", "info": {"name": "Ann"}}
    await watcher.close()
