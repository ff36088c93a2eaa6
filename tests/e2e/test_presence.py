"""Who is in a room, told over real nodes: joins and leaves once each, whatever happens to connections and nodes."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from tests.support.clients import Client, Ended, Refused, connect
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer

TTL, NODE_TTL, GRACE = 3.5, 2.0, 1.5  # seconds
TOML = "[channels.room]\npresence = true\n"
STORES = {"redis": RedisServer, "nats": NatsServer}
Store = RedisServer | NatsServer

_rooms = itertools.count(1)


def gateway(broker: str, name: str, **options: Any) -> Gateway:
    settings = {
        "presence_ttl": f"{TTL}s", "presence_grace": f"{GRACE}s", "node_ttl": f"{NODE_TTL}s", "heartbeat": "2s",
        "drain_wait": "200ms", "drain": "200ms",
    }  # fmt: skip
    return Gateway(broker=broker, node=name, toml=TOML, **(settings | options))


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with STORES[request.param]() as server:
        yield server


@pytest.fixture(scope="module")
def nodes(store: Store) -> Iterator[list[Gateway]]:
    with ExitStack() as stack:
        nodes = [stack.enter_context(gateway(store.url, name)) for name in "abc"]
        yield nodes
        for node in nodes:
            assert node.process.poll() is not None or node.stop() == 0, node.stderr
            assert not node.complaints(), node.stderr


@pytest.fixture
def room() -> str:
    return f"room:{next(_rooms)}"


def users(node: Gateway, room: str) -> set[str]:
    with node.http() as http:
        told = http.get("/v1/presence", params={"channel": room}).raise_for_status().json()
    assert told["count"] == len(told["members"])
    return {member["user"] for member in told["members"]}


async def enter(node: Gateway, user: str, room: str, transport: str = "websocket") -> Client:
    return await connect(transport, node.url, token(user, ["room:*"]), channels=[room])


class Watcher:
    """Sees who comes and goes; comes back to the next node when one sends it away."""

    def __init__(self, nodes: list[Gateway], room: str) -> None:
        self.told: list[tuple[str, str]] = []
        self.members: dict[str, Any] = {}
        self.channel = f"presence:{room}"
        self.resets = 0
        self._nodes = nodes
        self._ready = asyncio.Event()

    async def run(self) -> None:
        cursor: str | None = None
        for node in itertools.cycle(self._nodes):
            with suppress(Refused, OSError, Ended):
                client = await connect("websocket", node.url, token("watcher", ["room:*"]), channels=[self.channel],
                                       cursor=cursor, snapshot=cursor is None)  # fmt: skip
                try:
                    while True:
                        self._see(await client.receive(within=600))
                finally:
                    cursor = client.cursor
                    await client.close()

    def _see(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "welcome":
            for entry in frame["channels"]:
                self.members.update((m["key"], m["data"]) for m in entry.get("snapshot", ()))
            self._ready.set()
        self.resets += frame["type"] == "reset"
        if frame["type"] == "message":
            self.told.append((frame["event"], frame["key"]))
            if frame.get("deleted"):
                self.members.pop(frame["key"], None)
            else:
                self.members[frame["key"]] = frame["data"]

    async def until(self, condition: Callable[[], bool], within: float = 10.0) -> None:
        end = time.monotonic() + within
        while not condition():
            assert time.monotonic() < end, f"not within {within} s: {self.told}, {self.members}"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(nodes: list[Gateway], room: str) -> AsyncIterator[Watcher]:
    watcher = Watcher(nodes, room)
    running = asyncio.create_task(watcher.run())
    try:
        await watcher.until(watcher._ready.is_set)
        yield watcher
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_three_tabs_on_two_nodes_are_one_member(nodes: list[Gateway], room: str) -> None:
    a, b, c = nodes
    async with watching([c], room) as watcher:
        tabs = [await enter(a, "ann", room), await enter(b, "ann", room, "sse"), await enter(b, "ann", room)]
        await watcher.until(lambda: watcher.told == [("join", "ann")])
        other = await enter(c, "bob", room)
        await watcher.until(lambda: watcher.told == [("join", "ann"), ("join", "bob")])
        assert users(a, room) == users(b, room) == users(c, room) == {"ann", "bob"}
        await tabs[0].close()
        await tabs[1].cut()
        await asyncio.sleep(GRACE + 0.7)  # the third one is there: whoever counted wrong tells a leave by now
        assert watcher.told == [("join", "ann"), ("join", "bob")]
        await tabs[2].close()
        await watcher.until(lambda: watcher.told == [("join", "ann"), ("join", "bob"), ("leave", "ann")])
        await other.close()
        await watcher.until(lambda: not watcher.members)
        assert users(a, room) == set()


async def test_who_comes_back_within_the_grace_has_neither_left_nor_joined(nodes: list[Gateway], room: str) -> None:
    a, b, c = nodes
    async with watching([a], room) as watcher:
        client = await enter(a, "ann", room)
        await watcher.until(lambda: watcher.told == [("join", "ann")])
        for node, transport in ((a, "websocket"), (b, "sse"), (c, "poll"), (b, "websocket")):
            await client.cut()
            client = await enter(node, "ann", room, transport)
            await asyncio.sleep(GRACE / 2)
        await asyncio.sleep(GRACE + 0.7)
        assert watcher.told == [("join", "ann")]
        await client.close()
        await watcher.until(lambda: watcher.told == [("join", "ann"), ("leave", "ann")])


async def test_who_comes_late_reads_the_members_and_then_every_change(nodes: list[Gateway], room: str) -> None:
    a, b, c = nodes
    clients = [await enter(node, f"u{n}", room) for n, node in enumerate([a, b, c, a])]
    await c.until(lambda: len(users(c, room)) == 4)
    async with b.api(token("watcher", ["room:*"])) as http:
        told = (await http.get("/v1/presence", params={"channel": room})).raise_for_status().json()
    assert sorted(member["user"] for member in told["members"]) == ["u0", "u1", "u2", "u3"]
    late = await enter(b, "u4", room)
    await clients[0].close()
    async with watching([c], room) as watcher:
        # From the answer's cursor, on another node: nothing between the two is missed.
        follower = await connect("sse", a.url, token("watcher", ["room:*"]), channels=[f"presence:{room}"],
                                 cursor=told["cursor"])  # fmt: skip
        seen = [await follower.message() for _ in range(2)]
        assert {(frame["event"], frame["key"]) for frame in seen} == {("join", "u4"), ("leave", "u0")}
        await watcher.until(lambda: watcher.members.keys() == {"u1", "u2", "u3", "u4"})
        await follower.close()
    for client in [*clients[1:], late]:
        await client.close()


async def test_a_stopped_node_s_members_leave_and_are_there_again_when_it_goes_on(
    nodes: list[Gateway], room: str
) -> None:
    a, b, c = nodes
    async with watching([c], room) as watcher:
        client, other = await enter(a, "ann", room), await enter(b, "bob", room)
        await watcher.until(lambda: len(watcher.told) == 2)
        a.signal(signal.SIGSTOP)
        try:
            await watcher.until(lambda: ("leave", "ann") in watcher.told, within=TTL + 2)
        finally:
            a.signal(signal.SIGCONT)
        await watcher.until(lambda: "ann" in watcher.members)
        await asyncio.sleep(1)  # the node that was away believed to be alone: it ends nobody for that
        assert sorted(watcher.told) == [("join", "ann"), ("join", "ann"), ("join", "bob"), ("leave", "ann")]
        await client.close()
        await other.close()


async def test_who_may_not_read_a_channel_is_not_told_who_is_there(nodes: list[Gateway], room: str) -> None:
    async with nodes[0].api(token("eve", ["topic:*"])) as http:
        assert (await http.get("/v1/presence", params={"channel": room})).json()["code"] == "forbidden"
        assert (await http.get("/v1/presence", params={"channel": "topic:x"})).json()["code"] == "no_presence"
        assert (await http.get("/v1/presence")).json()["code"] == "bad_request"
        assert (await http.get("/v1/presence", params={"channel": "nothing"})).json()["code"] == "bad_channel"
    with pytest.raises(Refused) as refused:
        await connect("sse", nodes[0].url, token("eve", ["topic:*"]), channels=[f"presence:{room}"])
    assert refused.value.code == 4003
    with pytest.raises(Refused) as refused:
        await connect("sse", nodes[0].url, token("eve", ["topic:*"]), channels=["presence:topic:x"])
    assert refused.value.problem["code"] == "no_presence"


# Nodes that end are the last: the tests above share them.


async def test_a_rolling_restart_is_not_seen(nodes: list[Gateway], room: str) -> None:
    people = [asyncio.create_task(_stay(nodes, f"u{n}", room)) for n in range(12)]
    try:
        await nodes[0].until(lambda: len(users(nodes[0], room)) == 12)
        async with watching(nodes, room) as watcher:
            for node in nodes:
                await asyncio.to_thread(node.restart)
            await asyncio.sleep(TTL)  # what the ended runs vouched for is over by now
            assert watcher.told == []
            assert watcher.resets == 0
            assert users(nodes[1], room) == {f"u{n}" for n in range(12)}
    finally:
        for person in people:
            person.cancel()
        await asyncio.gather(*people, return_exceptions=True)


async def _stay(nodes: list[Gateway], user: str, room: str) -> None:
    """A client that is there, whatever becomes of its node."""
    for node in itertools.cycle(nodes):
        with suppress(Refused, OSError, Ended):
            client = await enter(node, user, room)
            try:
                await client.frame("goodbye", within=600)
            finally:
                await client.close()


async def test_a_killed_node_s_members_leave_within_the_ttl(nodes: list[Gateway], room: str) -> None:
    a, b, c = nodes
    async with watching([c], room) as watcher:
        clients = [await enter(a, f"u{n}", room) for n in range(5)] + [await enter(b, "bob", room)]
        await watcher.until(lambda: len(watcher.members) == 6)
        told = len(watcher.told)
        await asyncio.to_thread(a.kill)
        clients[0] = await enter(b, "u0", room)  # this one comes back
        began = time.monotonic()
        await watcher.until(lambda: watcher.members.keys() == {"u0", "bob"}, within=TTL + 2)
        assert time.monotonic() - began > NODE_TTL, "they were given no time to come back"
        assert sorted(watcher.told[told:]) == [("leave", f"u{n}") for n in range(1, 5)]
        for client in clients:
            await client.close()
