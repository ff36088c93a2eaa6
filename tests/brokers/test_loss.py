"""What every broker does when something goes wrong: a gap is told, a lost position refused, an offset never reused."""

from __future__ import annotations

import asyncio

import pytest

from gateway.brokers.memory import MemoryBroker
from tests.support.broker_steps import NEWS, check_until_done, follow, publish, publish_when_back, read_all
from tests.support.deployments import Deployment


async def test_a_lost_live_message_is_told_as_a_gap(store: Deployment) -> None:
    async with store.node() as (ann, _), store.node() as (bob, watcher):
        await follow(bob, NEWS)
        offsets = await publish(ann, NEWS)
        await watcher.knows(offsets[0])
        await store.cut(bob)
        offsets += await publish(ann, *[NEWS] * 5)
        await watcher.knows(offsets[-1])
        told = {message.offset for message in watcher.messages(NEWS)}
        covered = max(watcher.gaps(), default=0)
        assert all(offset in told or offset <= covered for offset in offsets)


async def test_a_lost_last_message_is_found_by_the_check(store: Deployment) -> None:
    async with store.node() as (ann, _), store.node() as (bob, watcher):
        await follow(bob, NEWS)
        await store.cut(bob)
        (offset,) = await publish(ann, NEWS)
        checking = asyncio.create_task(check_until_done(bob, NEWS))
        await watcher.knows(offset)
        checking.cancel()


async def test_the_check_of_a_healthy_stream_finds_nothing(store: Deployment) -> None:
    async with store.node() as (ann, _), store.node() as (bob, watcher):
        await follow(bob, NEWS)
        publishing = asyncio.create_task(publish(ann, *[NEWS] * 300))
        while not publishing.done():
            await bob.check([bob.partition(NEWS)])
            await asyncio.sleep(0)
        offsets = await publishing
        await watcher.knows(offsets[-1])
        assert not watcher.gaps()
        assert [message.offset for message in watcher.messages(NEWS)] == offsets


async def test_a_clean_restart_resets_nobody(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        offsets = await publish(broker, NEWS, NEWS, NEWS)
        await watcher.knows(offsets[-1])
        await store.restart()
        offsets.append(await publish_when_back(broker, NEWS))
        await watcher.knows(offsets[-1])
        found, page = await read_all(broker, NEWS, offsets[0])
        assert page.continuous
        assert found == offsets[1:]
        assert (broker.counts.losses, broker.counts.disconnects > 0) == (0, not isinstance(broker, MemoryBroker))


async def test_a_wiped_store_refuses_every_old_position_and_issues_no_offset_twice(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        old = await publish(broker, NEWS, NEWS, NEWS)
        await watcher.knows(old[-1])
        await store.wipe()
        new = await publish_when_back(broker, NEWS)
        assert new > old[-1]
        await watcher.knows(new)
        for since in old:
            page = await broker.read(NEWS, since, 10)
            assert not page.continuous
            assert [message.offset for message in page.messages] == [new]


async def test_what_a_store_lost_is_refused_once_a_witness_has_told_it(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        kept = await publish(broker, NEWS, NEWS)
        await store.copy()
        lost = await publish(broker, NEWS, NEWS)
        await watcher.knows(lost[-1])
        await store.go_back()
        new = [await publish_when_back(broker, NEWS) for _ in range(4)]  # more than were lost
        await watcher.knows(new[-1])
        assert min(new) > max(lost)
        for since in (kept[-1], *lost):
            assert not (await broker.read(NEWS, since, 10)).continuous, since
        assert (await broker.read(NEWS, new[0], 10)).continuous
        assert watcher.gaps()
        assert broker.counts.losses == 1


async def test_a_witness_that_only_published_tells_too(store: Deployment) -> None:
    async with store.node() as (publisher, _):
        await publish(publisher, NEWS)
        await store.copy()
        (lost,) = await publish(publisher, NEWS)
        await store.go_back()
        new = await publish_when_back(publisher, NEWS)
        assert new > lost
        assert not (await publisher.read(NEWS, lost, 10)).continuous


async def test_a_store_that_comes_back_is_found_again_and_again(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        for _ in range(3):
            await store.restart()
            await watcher.knows(await publish_when_back(broker, NEWS))


@pytest.mark.parametrize("wiped", [False, True])
async def test_offsets_are_issued_once_also_where_nobody_is_left_who_knew(store: Deployment, wiped: bool) -> None:
    async with store.node() as (broker, _):
        issued = await publish(broker, NEWS, "topic:other")
        if not wiped:
            await store.copy()
        issued += await publish(broker, *[NEWS, "topic:other"] * 20)
    await (store.wipe() if wiped else store.go_back())
    async with store.node() as (broker, _):
        again = [await publish_when_back(broker, channel) for channel in [NEWS, "topic:other"] * 20]
    assert not set(again) & set(issued)
    assert min(again) > max(issued)
