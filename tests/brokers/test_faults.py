"""What every broker does when the way to its store fails: notice, say so within bounds, come back by itself."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import pytest

from gateway.brokers.base import Broker
from gateway.errors import Problem
from tests.support.broker_steps import NEWS, draft, follow, publish, publish_when_back, read_all
from tests.support.deployments import Deployment, Watcher
from tests.support.wires import Wires, beside

BOUND = 6.0  # seconds that any verb takes at most while the store is away; on a busy machine


async def refused(verb: Awaitable[object]) -> float:
    """Seconds until a verb says that the store is away."""
    began = time.monotonic()
    with pytest.raises(Problem) as problem:
        await verb
    assert problem.value.code == "unavailable"
    assert problem.value.kind.status == 503
    assert problem.value.retry_after
    return time.monotonic() - began


async def connected(broker: Broker, is_: bool, within: float = 15.0) -> None:
    async with asyncio.timeout(within):
        while broker.connected is not is_:  # noqa: ASYNC110 - it is a property, as /readyz asks it
            await asyncio.sleep(0.01)


def covered(watcher: Watcher, offsets: list[int], channel: str = NEWS) -> None:
    """Each was told, or a gap says that it may not have been."""
    told = [message.offset for message in watcher.messages(channel)]
    assert told == sorted(set(told))
    gap = max(watcher.gaps(), default=0)
    assert [offset for offset in offsets if offset not in told and offset > gap] == []


async def test_a_half_open_link_is_noticed_told_within_bounds_and_mended(remote: Deployment) -> None:
    async with Wires() as wires, remote.node() as (ann, _), wires.node(remote) as (bob, watcher):
        await follow(bob, NEWS)
        offsets = await publish(bob, NEWS)
        wires.freeze()
        offsets += await beside(publish(ann, *[NEWS] * 3))
        assert await refused(bob.publish(draft())) < BOUND
        times = [await refused(bob.publish(draft())) for _ in range(50)]
        assert sum(times) < 1, "each waited anew"
        assert await refused(bob.read(NEWS, offsets[0], 10)) < BOUND
        assert await refused(bob.snapshot(NEWS)) < BOUND
        assert await refused(bob.check([bob.partition(NEWS)])) < BOUND
        await connected(bob, False, within=10)
        assert await refused(bob.subscribe([bob.partition("topic:other")])) < BOUND
        offsets += await beside(publish(ann, NEWS))
        wires.heal()
        offsets.append(await publish_when_back(bob, NEWS))
        await watcher.knows(offsets[-1])
        covered(watcher, offsets)
        assert watcher.gaps(), "what was lost on the way was not told"
        assert set(offsets) <= set((await read_all(bob, NEWS, offsets[0] - 1))[0])


async def test_a_short_stall_loses_nothing_and_resets_nobody(remote: Deployment) -> None:
    async with Wires() as wires, remote.node() as (ann, _), wires.node(remote) as (bob, watcher):
        await follow(bob, NEWS)
        offsets = await publish(bob, NEWS)
        wires.stall()
        offsets += await beside(publish(ann, *[NEWS] * 20))
        publishing = asyncio.create_task(publish(bob, NEWS))
        await asyncio.sleep(0.5)
        assert not publishing.done()
        wires.heal()
        offsets += await publishing
        await watcher.knows(offsets[-1])
        covered(watcher, offsets)
        found, page = await read_all(bob, NEWS, offsets[0])
        assert page.continuous
        assert found == offsets[1:]


async def test_a_store_that_is_not_there_yet_is_found_as_after_a_cut(remote: Deployment) -> None:
    async with Wires() as wires, remote.node() as (ann, _):
        wires.refuse()
        async with wires.around():
            broker, watcher = remote.broker(remote.settings()), Watcher()
            await broker.start()  # that the store is away is no error
            running = asyncio.create_task(broker.run(watcher))
            try:
                await asyncio.sleep(0)
                assert await refused(broker.publish(draft())) < BOUND
                assert await refused(broker.read(NEWS, 0, 1)) < BOUND
                assert await refused(broker.subscribe([0])) < BOUND
                assert not broker.connected
                offsets = await beside(publish(ann, NEWS))
                wires.heal()
                await connected(broker, True)
                await follow(broker, NEWS)
                offsets.append(await publish_when_back(broker, NEWS))
                await watcher.knows(offsets[-1])
                assert (await read_all(broker, NEWS, offsets[0] - 1))[0] == offsets
                assert not running.done()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await broker.close()


async def test_a_fault_that_nobody_thought_of_does_not_end_the_reader(
    remote: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Wires() as wires, wires.node(remote) as (bob, watcher):
        await follow(bob, NEWS)
        offsets = await publish(bob, NEWS)
        failed = asyncio.Event()

        async def fail(*_: object, **__: object) -> None:
            failed.set()
            monkeypatch.undo()
            raise AttributeError("'NoneType' object has no attribute 'node'")

        monkeypatch.setattr(bob, "_claim" if hasattr(bob, "_claim") else "_prepare", fail)
        wires.cut()
        async with asyncio.timeout(15):
            await failed.wait()
        offsets.append(await publish_when_back(bob, NEWS))
        await watcher.knows(offsets[-1])
        covered(watcher, offsets)
        assert "begins anew" in caplog.text
        assert "no attribute 'node'" in caplog.text


async def each_fault(
    store: Deployment, wires: Wires, bob: Broker, watcher: Watcher, faults: list[Callable[[], Awaitable[object]]]
) -> None:
    """After each fault bob is back and has been told everything, or a gap."""
    await follow(bob, NEWS)
    offsets = await publish(bob, NEWS)
    for fault in faults:
        told = len(watcher.told)
        await fault()
        offsets.append(await publish_when_back(bob, NEWS))
        await watcher.knows(offsets[-1], within=30)
        covered(watcher, offsets)
        assert len(watcher.told) > told


def faults_of(wires: Wires) -> dict[str, Callable[[], Awaitable[object]]]:
    async def passing(what: Callable[[], None], seconds: float) -> None:
        what()
        await asyncio.sleep(seconds)
        wires.heal()

    return {
        "cut": lambda: passing(wires.cut, 0),
        "away": lambda: passing(wires.refuse, 0.3),
        "junk": lambda: passing(wires.babble, 0.1),
        "junk for long": lambda: passing(wires.babble, 5),
        "stall": lambda: passing(wires.stall, 5),
        "half-open": lambda: passing(wires.freeze, 5),
    }


async def test_running_outlives_cuts_refusals_and_junk(remote: Deployment) -> None:
    async with Wires() as wires, wires.node(remote) as (bob, watcher):
        faults = faults_of(wires)
        await each_fault(remote, wires, bob, watcher, [faults[name] for name in ("cut", "away", "junk")] * 2)


@pytest.mark.chaos
async def test_running_ends_by_cancellation_alone(remote: Deployment) -> None:
    """Every fault there is, some while another goes on; then it ends at once, though its link is dead."""
    dice = random.Random(7)
    async with Wires() as wires, wires.node(remote) as (bob, watcher):
        ways = faults_of(wires)
        whole: dict[str, Callable[[], Awaitable[object]]] = {
            "restart": remote.restart,
            "operator": lambda: remote.cut(bob),
            "restart while cut off": lambda: asyncio.gather(remote.restart(), ways["away"]()),
            "restart behind a dead link": lambda: asyncio.gather(remote.restart(), ways["half-open"]()),
        }
        faults = [*ways.values(), *whole.values()]
        dice.shuffle(faults)
        await each_fault(remote, wires, bob, watcher, [*faults, remote.wipe])
        wires.freeze()
        began = time.monotonic()
    assert time.monotonic() - began < 8, "it did not end when it was cancelled"
