"""What the gateway hears of a keyed channel: a snapshot and what follows, begun again whenever that may be wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from gateway.auth import Authenticator
from gateway.brokers.memory import MemoryBroker
from gateway.brokers.memory_store import MemoryStore
from gateway.follow import Follower
from gateway.message import Draft, Message, new_id
from gateway.metrics import Metrics
from gateway.node import Node
from gateway.session import Session
from gateway.settings import Settings

CHANNEL = "ringcast:things"


class Heard:
    """What a follower of a running node tells, in order."""

    def __init__(self, node: Node) -> None:
        self.told: list[list[str] | str] = []
        self._news = asyncio.Event()
        self.follower = Follower(node, CHANNEL, self._snapshot, self._message)

    def _snapshot(self, messages: list[Message]) -> None:
        self.told.append([value(message) for message in messages])
        self._news.set()

    def _message(self, message: Message) -> None:
        self.told.append(value(message))
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._news.clear()
                await self._news.wait()


def ears(node: Node) -> list[Session]:
    return [session for session in node.own if CHANNEL in session.channels]


def value(message: Message) -> str:
    return f"{message.key}{'-' if message.deleted else '='}{message.data.decode()}"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    settings = Settings()
    node = Node(settings, MemoryBroker(MemoryStore(settings)), Authenticator(settings), Metrics())
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def heard(node: Node) -> AsyncIterator[Heard]:
    await put(node, "a", "1")
    await put(node, "b", "2")
    heard = Heard(node)
    task = asyncio.create_task(heard.follower.run())
    await heard.until(lambda: bool(heard.told))
    yield heard
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not ears(node)
    channel = node.hub.partitions[node.broker.partition(CHANNEL)].channels.get(CHANNEL)
    assert channel is None or not channel.subscriptions


async def put(node: Node, key: str, data: str, *, deleted: bool = False) -> None:
    await node.publish(Draft(CHANNEL, "thing", data.encode(), new_id(), key=key, deleted=deleted))


async def test_a_snapshot_comes_first_and_then_what_follows(node: Node, heard: Heard) -> None:
    await put(node, "a", "3")
    await put(node, "b", "null", deleted=True)
    await heard.until(lambda: len(heard.told) == 3)
    assert heard.told == [["a=1", "b=2"], "a=3", "b-null"]


async def test_it_begins_again_after_a_cut(node: Node, heard: Heard) -> None:
    [session] = ears(node)
    session.carrier.abort()
    await put(node, "b", "null", deleted=True)
    await heard.until(lambda: ["a=1"] in heard.told)
    await put(node, "a", "4")
    await heard.until(lambda: heard.told[-1] == "a=4")
    assert ears(node) not in ([], [session])


async def test_it_begins_again_where_the_store_lost_something(node: Node, heard: Heard) -> None:
    assert isinstance(node.broker, MemoryBroker)
    node.broker.store.begin()  # a new store process, with nothing
    await node.broker.check(list(node.hub.partitions))
    await heard.until(lambda: heard.told[-1] == [])
    await put(node, "c", "5")
    await heard.until(lambda: heard.told[-1] == "c=5")
