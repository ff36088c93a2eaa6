"""The verbs on a user as a running node does them: in their order, once, and not to who came later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from gateway.auth import Authenticator
from gateway.brokers.memory import MemoryBroker
from gateway.brokers.memory_store import MemoryStore
from gateway.identity import Identity
from gateway.message import VERBS, Control, Draft, new_id
from gateway.metrics import Metrics
from gateway.node import Node
from gateway.session import Ask, Calls, Session
from gateway.settings import Settings
from gateway.users import DISCONNECT, SUBSCRIBE, UNSUBSCRIBE


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    settings = Settings(partitions=1, max_channels=3, jwt_leeway=0.0, linger=0.0)
    node = Node(settings, MemoryBroker(MemoryStore(settings)), Authenticator(settings), Metrics())
    await node.start()
    yield node
    await node.stop()


class Client:
    """A session of a user, and what it was told."""

    def __init__(self, node: Node, user: str) -> None:
        self.node = node
        self.news = asyncio.Event()
        identity = Identity(f"user:{user}", user)
        self.session: Session = node.session(identity, Calls(self.news.set), welcome=True)
        self.told: list[str] = []

    async def open(self) -> Client:
        await self.node.open(self.session, [Ask(channel) for channel in self.session.identity.own_channels])
        await self.until("welcome")
        return self

    async def until(self, end: str) -> list[str]:
        async with asyncio.timeout(5):
            while not self.told or self.told[-1] != end:
                await self.news.wait()
                self.news.clear()
                for item in self.session.take():
                    if isinstance(item, Control) and item.kind != "ping":
                        self.told.append(f"{item.kind} {item.channel or item.body.get('channel', '')}".strip())
                self.node.sent(self.session)
        return self.told[1:]


async def tell(node: Node, user: str, verb: str, **data: Any) -> None:
    await node.publish(Draft(VERBS + user, verb, msgspec.json.encode(data), new_id()))


def ears(node: Node) -> list[Session]:
    return [session for session in node.own if any(name.startswith(VERBS) for name in session.channels)]


async def deaf(node: Node) -> None:
    """Until all that was sent is done: then no ear is subscribed to anything."""
    async with asyncio.timeout(5):
        while ears(node):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


async def test_verbs_are_done_in_their_order(node: Node) -> None:
    ann, bob = await Client(node, "ann").open(), await Client(node, "bob").open()
    await tell(node, "ann", SUBSCRIBE, channels=["room:1"])
    await tell(node, "ann", UNSUBSCRIBE, channels=["room:1", "room:never"])
    await tell(node, "ann", SUBSCRIBE, channels=["room:1"])
    await tell(node, "ann", DISCONNECT, code="forbidden", hint="over")
    assert await ann.until("goodbye") == [
        "subscribed room:1", "unsubscribed room:1", "subscribed room:1", "goodbye"
    ]  # fmt: skip
    assert ann.session.closing == 4003
    assert (bob.session.closing, set(bob.session.channels)) == (None, {"user:bob", "jobs:bob"})


async def test_a_session_gets_no_more_channels_than_it_may_have(node: Node) -> None:
    ann = await Client(node, "ann").open()
    await tell(node, "ann", SUBSCRIBE, channels=["room:1", "room:2"])
    assert await ann.until("error") == ["error"]
    await tell(node, "ann", SUBSCRIBE, channels=["room:1", "user:ann"])
    assert await ann.until("subscribed room:1") == ["error", "subscribed room:1"]


async def test_what_cannot_be_read_is_passed_over_and_the_next_verb_is_done(node: Node) -> None:
    ann = await Client(node, "ann").open()
    await tell(node, "ann", SUBSCRIBE, channels=5)
    await tell(node, "ann", DISCONNECT, code="of a later version", hint="")
    await tell(node, "ann", "of a later version")
    await tell(node, "ann", DISCONNECT, code="unauthorised", hint="")
    assert await ann.until("goodbye") == ["goodbye"]


async def test_verbs_that_come_late_spare_who_came_after_them(node: Node) -> None:
    assert isinstance(node.broker, MemoryBroker)
    early = await Client(node, "ann").open()
    early.session.opened_at -= 10
    late = await Client(node, "ann").open()
    node.broker.store.clock = lambda: int((time.time() - 5) * 1e6)  # the store took it five seconds ago
    await tell(node, "ann", DISCONNECT, code="unauthorised", hint="")
    await early.until("goodbye")
    assert late.session.closing is None


async def test_an_ear_that_the_hub_cuts_goes_on_where_it_stood(node: Node) -> None:
    ann, bob = await Client(node, "ann").open(), await Client(node, "bob").open()
    assert isinstance(node.broker, MemoryBroker)
    for user in ("ann", "bob"):
        await tell(node, user, DISCONNECT, code="unauthorised", hint="")
    node.broker.drain()
    [ear] = ears(node)
    ear.carrier.abort()  # as the hub does when it needs the room
    node.hub.leave(ear)
    assert ears(node) not in ([], [ear])
    for client in (ann, bob):
        await client.until("goodbye")


async def test_a_verb_that_was_not_announced_is_read_when_the_gap_is_found(node: Node) -> None:
    ann, bob = await Client(node, "ann").open(), await Client(node, "bob").open()
    broker = node.broker
    assert isinstance(broker, MemoryBroker)
    for client, user in ((ann, "ann"), (bob, "bob")):
        broker.store.listeners.remove(broker.receive)
        await tell(node, user, DISCONNECT, code="unauthorised", hint="")
        broker.store.listeners.append(broker.receive)
        await broker.check([broker.partition(VERBS + user)])
        assert len(ears(node)) == 1
        await client.until("goodbye")
        await deaf(node)


async def test_nothing_is_held_for_users_who_have_left(node: Node) -> None:
    assert isinstance(node.broker, MemoryBroker)
    clients = [await Client(node, user).open() for user in ("ann", "ann", "bob")]
    assert sorted(node.users) == ["ann", "bob"]
    assert ears(node) == []
    assert not [name for at in node.hub.partitions.values() for name in at.channels if name.startswith(VERBS)]
    await tell(node, "ann", SUBSCRIBE, channels=["room:1"])
    await clients[0].until("subscribed room:1")
    await deaf(node)
    await tell(node, "ann", SUBSCRIBE, channels=["room:2"])
    node.broker.drain()
    assert len(ears(node)) == 1
    for client in clients:
        node.leave(client.session)
        node.leave(client.session)  # twice does nothing
    assert list(node.users) == []
    assert ears(node) == []
    for at in node.hub.partitions.values():
        assert at.subscriptions == sum(channel.subscriptions for channel in at.channels.values())
    held = [each for at in node.hub.partitions.values() for each in at.channels.values() if each.subscriptions]
    assert not [each.name for each in held if each.name.startswith(VERBS)]
