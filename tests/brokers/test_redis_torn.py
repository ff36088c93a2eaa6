"""Two masters at once, as after a failover by hand: until its nodes leave it the old one takes writes, to lose them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.brokers import chain
from gateway.brokers.redis import RedisBroker
from gateway.brokers.redis_calls import Call
from tests.brokers.conftest import opened
from tests.support.broker_steps import NEWS, draft, follow, publish
from tests.support.cable import Cable
from tests.support.deployments import RedisAlone, Watcher
from tests.support.redis import RedisServer


@dataclass
class Node:
    """It is led to a server by a line of its own."""

    broker: RedisBroker
    watcher: Watcher
    cable: Cable

    async def move(self, server: RedisServer) -> int:
        """Returns when it has told that server what it knows of: where the gap ends that it was told of."""
        gaps = len(self.watcher.gaps())
        self.cable.far = server.port
        self.cable.cut()
        await self.watcher.until(lambda: len(self.watcher.gaps()) > gaps)
        return self.watcher.gaps()[-1]


@dataclass
class Torn:
    new: RedisServer
    ann: Node
    bob: Node


@asynccontextmanager
async def torn() -> AsyncIterator[Torn]:
    """Both nodes follow the channel on the old master, and know of a message that the new one does not have."""
    async with opened(RedisAlone()) as store:
        with store.server.client() as client:
            client.config_set("repl-diskless-sync-delay", 0)
        with RedisServer("--replicaof", "127.0.0.1", str(store.server.port)) as new:
            async with node(store) as ann, node(store) as bob:
                await publish(ann.broker, NEWS)
                with store.server.client() as first, new.client() as second:
                    assert first.execute_command("WAIT", 1, 10_000)
                    second.execute_command("REPLICAOF", "NO", "ONE")
                (offset,) = await publish(bob.broker, NEWS)
                for each in (ann, bob):
                    await each.watcher.knows(offset)
                yield Torn(new, ann, bob)


@asynccontextmanager
async def node(store: RedisAlone) -> AsyncIterator[Node]:
    async with (
        Cable(store.server.port) as cable,
        store.node(broker=f"redis://127.0.0.1:{cable.port}") as (broker, watcher),
    ):
        assert isinstance(broker, RedisBroker)
        await follow(broker, NEWS)
        yield Node(broker, watcher, cable)


@contextmanager
def answers_held_up(broker: RedisBroker) -> Iterator[Callable[[], None]]:
    """The store gets what it is sent, but its answers stay under way until what this yields is called."""
    run, released = broker._calls.run, asyncio.Event()

    async def late(calls: Iterable[Call]) -> list[Any]:
        answers = await run(calls)
        await released.wait()
        return answers

    broker._calls.run = late  # type: ignore[method-assign]
    try:
        yield released.set
    finally:
        broker._calls.run = run  # type: ignore[method-assign]


async def test_what_the_old_master_acknowledged_after_the_loss_was_told_is_told_too() -> None:
    async with torn() as store:
        ann, bob = store.ann, store.bob
        ann.cable.drop = lambda data: b"unheard of" in data
        with answers_held_up(bob.broker) as release:
            publishing = asyncio.create_task(bob.broker.publish(draft(data=b'"unheard of"')))
            async with asyncio.timeout(10):
                while not ann.cable.dropped:  # noqa: ASYNC110 - it is stored then
                    await asyncio.sleep(0.01)
            told = await ann.move(store.new)
            release()
            assert (await publishing).offset < told
        assert (await ann.broker.read(NEWS, told, 10)).continuous
        await bob.move(store.new)
        page = await ann.broker.read(NEWS, told, 10)
        assert (page.continuous, page.reason) == (False, "lost")
        await publish(bob.broker, NEWS)
        await ann.watcher.until(lambda: ann.watcher.gaps()[-1] >= page.floor)


async def test_who_knows_only_of_what_was_told_already_resets_nobody_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "ANSWERED", 0.0)  # whoever published has the answer
    async with torn() as store:
        ann, bob = store.ann, store.bob
        told = await ann.move(store.new)
        assert await bob.move(store.new) == told
        assert (await bob.broker.read(NEWS, told, 10)).continuous
