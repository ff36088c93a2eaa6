"""What is NATS's own in keeping the promises: positions, what streams lose, ids and keys."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from gateway.brokers import nats_format
from gateway.brokers.base import Broker
from gateway.brokers.nats import NatsBroker
from gateway.brokers.nats_api import Api
from gateway.brokers.nats_lines import Claims
from gateway.brokers.nats_link import Away
from gateway.errors import Problem
from tests.support.broker_steps import NEWS, draft, follow, publish, publish_when_back, read_all
from tests.support.nats import NatsAlone, NatsCluster, NatsInMemory

KEYED: dict[str, Any] = {"channels": {"room": {"keyed": True, "max_keys": 5000}}}


def nats_of(broker: Broker) -> NatsBroker:
    assert isinstance(broker, NatsBroker)
    return broker


# ---------------------------------------------------------------- positions


async def test_a_burst_on_another_channel_resets_no_quiet_one(alone: NatsAlone) -> None:
    async with alone.node(partitions=1, channels={"default": {"history_size": 10}}) as (broker, watcher):
        await follow(broker, NEWS)
        begun = watcher.told[0][2]
        await publish(broker, *["topic:loud"] * 100)
        assert (await broker.read(NEWS, begun, 10)).continuous
        assert not (await broker.read("topic:loud", begun, 10)).continuous


async def test_a_quiet_partition_is_not_reset_by_a_clean_restart(alone: NatsAlone) -> None:
    changes: dict[str, Any] = {"channels": {"default": {"history_ttl": 1}}, "idempotency_window": 1}
    async with alone.node(**changes) as (broker, watcher):
        await follow(broker, NEWS)
        (last,) = await publish(broker, NEWS)
        await watcher.knows(last)
        while (await broker.read(NEWS, last - 1, 10)).messages:  # noqa: ASYNC110 - until nothing is held
            await asyncio.sleep(0.1)
        await alone.restart()
        new = await publish_when_back(broker, NEWS)
        found, page = await read_all(broker, NEWS, last)
        assert page.continuous
        assert found == [new]


async def test_a_time_is_found_in_the_stream(alone: NatsAlone) -> None:
    async with alone.node() as (broker, _):
        before = await publish(broker, NEWS, NEWS)
        await asyncio.sleep(0.01)
        between = time.time_ns() // 1000
        await asyncio.sleep(0.01)
        after = await publish(broker, "topic:other", NEWS, NEWS)
        position = await broker.position_at(NEWS, between)
        assert before[-1] <= position < after[1]
        assert (await read_all(broker, NEWS, position))[0] == after[1:]
        assert (await read_all(broker, NEWS, await broker.position_at(NEWS, 0)))[0] == [*before, *after[1:]]
        now = await broker.position_at(NEWS, time.time_ns() // 1000 + 10_000_000)
        assert now >= after[-1]
        assert (await broker.read(NEWS, now, 10)).continuous


# ---------------------------------------------------------------- what a store loses


async def test_memory_that_is_gone_after_a_restart_is_told(in_memory: NatsInMemory) -> None:
    async with in_memory.node() as (broker, watcher):
        await follow(broker, NEWS)
        old = await publish(broker, NEWS, NEWS)
        await watcher.knows(old[-1])
        await in_memory.restart()
        new = await publish_when_back(broker, NEWS)
        assert new > old[-1]
        await watcher.knows(new)
        for since in old:
            assert not (await broker.read(NEWS, since, 10)).continuous
        assert (await broker.read(NEWS, new, 10)).continuous


async def test_publishes_that_wait_for_restored_files_reuse_no_offset(alone: NatsAlone) -> None:
    channels = [f"topic:{number}" for number in range(8)]
    async with alone.node(partitions=2) as (ann, watcher), alone.node(partitions=2) as (bob, _):
        await follow(ann, *channels)
        await publish(ann, *channels)
        await alone.copy()
        lost = [*await publish(ann, *channels * 5), *await publish(bob, *channels * 5)]
        waiting = [publish_when_back(broker, channel) for channel in channels for broker in (ann, bob)]
        new, _ = await asyncio.gather(asyncio.gather(*waiting), alone.go_back())
        new += [await publish_when_back(broker, channel) for channel in channels for broker in (ann, bob)]
        survivors = [offset for offset in new if offset not in lost]
        for channel in channels:
            number = nats_of(ann).partition(channel)
            top = max(offset for offset in lost)
            page = await ann.read(channel, top, 100)
            assert not page.continuous, (channel, number)
        assert len(set(survivors)) == len(survivors)
        for name in channels:  # each has a place of its own above all that was lost
            offsets, _ = await read_all(ann, name, max(lost))
            assert offsets == sorted(set(offsets))
            assert not set(offsets) & set(lost)
        assert watcher.gaps()


async def test_a_stream_that_an_operator_deleted_is_made_again_and_its_loss_told(alone: NatsAlone) -> None:
    async with alone.node() as (broker, watcher):
        await follow(broker, NEWS)
        (old,) = await publish(broker, NEWS)
        async with alone.servers[0].client() as client:
            await client.request(f"$JS.API.STREAM.DELETE.rc-l{broker.partition(NEWS)}", b"", timeout=5)
        new = await publish_when_back(broker, NEWS)
        assert new > old
        await broker.check([broker.partition(NEWS)])
        await watcher.knows(new)
        assert not (await broker.read(NEWS, old, 10)).continuous


async def test_a_repeat_of_what_was_not_announced_makes_its_followers_look(alone: NatsAlone) -> None:
    async with alone.node() as (ann, _), alone.node() as (bob, watcher):
        await follow(bob, NEWS)
        await watcher.knows((await publish(ann, NEWS))[0])
        live = nats_of(bob)._live
        assert live is not None
        lost: list[Any] = []
        live._on_message = lambda *message: lost.append(message)  # type: ignore[method-assign]
        once = draft(id="7", principal="key:a", idempotent=True)
        first = await ann.publish(once)
        while not lost:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        del live._on_message
        again = await ann.publish(once)
        assert (again.duplicate, again.offset) == (True, first.offset)
        began = time.monotonic()
        await watcher.knows(first.offset)
        assert time.monotonic() - began < 2  # long before any periodic check
        assert watcher.gaps() == [first.offset]


async def test_a_take_over_that_was_not_announced_is_no_loss(alone: NatsAlone) -> None:
    """A publisher at another server of a cluster may not know of it yet, nor does who hears that message."""
    async with alone.node(partitions=1) as (ann, _), alone.node(partitions=1) as (bob, watcher):
        await follow(bob, NEWS)
        (first,) = await publish(ann, NEWS)
        await watcher.knows(first)
        hears, number = nats_of(bob)._live, ann.partition(NEWS)
        api, line = nats_of(ann)._api, nats_of(ann).lines[number]
        assert hears is not None
        assert api is not None
        old, missed = line.lineage.history, asyncio.Event()
        hears._on_take_over = lambda *_: missed.set()  # type: ignore[method-assign]
        api.link.process = "another server's"
        await nats_of(ann).lines.ready(api, line)
        await missed.wait()
        late = nats_format.encode(draft(), old, 0, None)
        ack = await api.publish(nats_of(ann).names.message(number, NEWS, None), late, {"Nats-Msg-Id": "late"})
        await watcher.knows(line.lineage.offset(ack.seq))
        await bob.check([number])
        assert (nats_of(bob).counts.losses, (await bob.read(NEWS, first, 10)).continuous) == (0, True)


@pytest.mark.chaos
async def test_leaders_that_step_down_under_load_lose_nothing(cluster: NatsCluster) -> None:
    async with cluster.node(partitions=1) as (ann, _), cluster.node(partitions=1) as (bob, watcher):
        await follow(bob, NEWS)
        offsets: list[int] = []
        done = asyncio.Event()

        async def keep_publishing() -> None:
            while not done.is_set():
                offsets.append(await publish_when_back(ann, NEWS))

        publishers = [asyncio.create_task(keep_publishing()) for _ in range(10)]
        for _ in range(5):
            have = len(offsets)
            await cluster.step_down("rc-l0")
            while len(offsets) < have + 50:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        done.set()
        await asyncio.gather(*publishers)
        assert len(set(offsets)) == len(offsets)
        await bob.check([bob.partition(NEWS)])
        await watcher.knows(max(offsets))
        heard = [message.offset for message in watcher.messages(NEWS)]
        assert heard == sorted(set(heard))
        held, _ = await read_all(bob, NEWS, offsets[0] - 1)
        assert set(offsets) <= set(held) | set(heard)
        first, *_ = heard
        gaps = watcher.gaps()
        missed = [offset for offset in offsets if offset not in set(heard) and offset >= first]
        assert all(any(gap >= offset for gap in gaps) for offset in missed)


# ---------------------------------------------------------------- ids and keys


async def test_a_retry_is_a_repeat_though_its_key_has_moved_on(alone: NatsAlone) -> None:
    async with alone.node(**KEYED) as (broker, _):
        first = draft("room:1", b"1", key="k", version=(1,), id="a", principal="p", idempotent=True)
        receipt = await broker.publish(first)
        await broker.publish(draft("room:1", b"2", key="k", version=(2,)))
        again = await broker.publish(first)
        assert (again.duplicate, again.offset) == (True, receipt.offset)
        with pytest.raises(Problem) as refused:
            await broker.publish(draft("room:1", b"1", key="k", version=(1,), id="b", principal="p", idempotent=True))
        assert refused.value.code == "stale_version"
        assert refused.value.facts["current"]["version"] == [2]


async def test_a_snapshot_of_more_keys_than_the_server_answers_at_once(alone: NatsAlone) -> None:
    async with alone.node(**KEYED) as (broker, _):
        for first in range(0, 1100, 100):  # as many as a busy machine answers in time
            await asyncio.gather(*(broker.publish(draft("room:1", key=f"k{first + more}")) for more in range(100)))
        snapshot = await broker.snapshot("room:1")
        assert {message.key for message in snapshot.messages} == {f"k{number}" for number in range(1100)}
        assert (await broker.read("room:1", snapshot.offset, 10)).continuous


async def test_a_keys_time_ends_with_a_deletion_that_everyone_hears_once(alone: NatsAlone) -> None:
    async with alone.node(**KEYED) as (ann, watcher), alone.node(**KEYED) as (bob, _):
        await follow(ann, "room:1")
        await ann.publish(draft("room:1", key="short", ttl=0.5, version=(3,)))
        await ann.publish(draft("room:1", key="renewed", ttl=0.5))
        renewed = await ann.publish(draft("room:1", key="renewed", ttl=60))
        await watcher.until(lambda: any(m.deleted and m.key == "short" for m in watcher.messages("room:1")))
        await asyncio.gather(*(nats_of(broker).sweep(range(ann_partitions(ann))) for broker in (ann, bob)))
        (last,) = await publish(ann, "room:1")
        await watcher.knows(last)
        deletions = [message for message in watcher.messages("room:1") if message.deleted]
        deletions = [m for m in deletions if m.key == "short" or m.offset > renewed.offset]  # it may have come late
        assert [(m.key, m.event, m.version, m.data) for m in deletions] == [("short", "expired", (3,), b"null")]
        assert [message.key for message in (await bob.snapshot("room:1")).messages] == ["renewed"]


def ann_partitions(broker: Broker) -> int:
    return nats_of(broker).settings.partitions


async def test_a_value_whose_time_is_over_is_in_no_snapshot(alone: NatsAlone) -> None:
    async with alone.node(**KEYED) as (broker, _):
        nats_of(broker).homes = list  # nobody is home
        await broker.publish(draft("room:1", key="k", ttl=0.05))
        await asyncio.sleep(0.1)
        assert (await broker.snapshot("room:1")).messages == []


async def test_a_ttl_beyond_what_is_kept_is_refused(alone: NatsAlone) -> None:
    async with alone.node(**KEYED) as (broker, _):
        with pytest.raises(Problem, match="key_ttl"):
            await broker.publish(draft("room:1", key="k", ttl=3650 * 86400.0))


async def test_partitions_that_answered_are_followed_though_another_did_not(
    alone: NatsAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cluster where one stream has no leader just then."""
    async with alone.node() as (ann, _), alone.node() as (bob, watcher):
        here, gone = ann.partition(NEWS), ann.partition("topic:other")
        assert here != gone
        lines = nats_of(bob).lines
        check = lines.check

        async def some(api: Api, number: int, claims: Claims) -> tuple[int, str]:
            if number == gone:
                raise Away("it has no leader")
            return await check(api, number, claims)

        monkeypatch.setattr(lines, "check", some)
        with pytest.raises(Problem, match="it has no leader"):
            await bob.subscribe([here, gone])
        monkeypatch.undo()
        assert [(kind, partition) for kind, partition, _ in watcher.told] == [("watermark", here)]
        await watcher.knows((await publish(ann, NEWS))[0])
        await bob.subscribe([gone])
        await watcher.knows((await publish(ann, "topic:other"))[0])
        assert not watcher.gaps()
