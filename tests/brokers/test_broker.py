"""What every broker promises while its store is well: order, ids, keys, and positions that are shown or refused."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.brokers.base import Broker
from gateway.errors import Problem
from tests.support.broker_steps import NEWS, draft, follow, publish, read_all
from tests.support.deployments import Deployment

# ---------------------------------------------------------------- publishing and hearing


async def test_messages_arrive_in_the_order_of_their_receipts(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        offsets = await publish(broker, *[NEWS] * 50)
        await watcher.knows(offsets[-1])
        assert [message.offset for message in watcher.messages(NEWS)] == offsets == sorted(set(offsets))
        assert not watcher.gaps()


async def test_concurrent_publishers_share_one_order(store: Deployment) -> None:
    async with store.node() as (ann, heard), store.node() as (bob, also):
        await follow(ann, NEWS)
        await follow(bob, NEWS)
        receipts = await asyncio.gather(*(broker.publish(draft()) for _ in range(200) for broker in (ann, bob)))
        offsets = sorted(receipt.offset for receipt in receipts)
        assert len(set(offsets)) == 400
        for watcher in (heard, also):
            await watcher.knows(offsets[-1])
            assert [message.offset for message in watcher.messages(NEWS)] == offsets
            assert not watcher.gaps()


async def test_what_is_published_after_subscribing_is_never_missed(store: Deployment) -> None:
    async with store.node() as (ann, _), store.node() as (bob, watcher):
        for number in range(40):
            channel = f"topic:{number}"
            publishing = asyncio.create_task(publish(ann, *[channel] * 5))
            await follow(bob, channel)
            (last,) = await publish(ann, channel)
            offsets = [*await publishing, last]
            await watcher.knows(max(offsets))
            partition = bob.partition(channel)
            begun = max(what for kind, where, what in watcher.told if kind == "watermark" and where == partition)
            heard = {message.offset for message in watcher.messages(channel)}
            assert {offset for offset in offsets if offset > begun} <= heard
        assert not watcher.gaps()


async def test_a_message_comes_back_as_it_went_in(store: Deployment) -> None:
    data = '{"emoji":"🎉","line":"\u2028","big":12345678901234567890,"nested":[[[]]]}'.encode()
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        sent = draft(data=data, id="an id: with spaces, commas and ü")
        receipt = await broker.publish(sent)
        await watcher.knows(receipt.offset)
        (stored,) = (await broker.read(NEWS, receipt.offset - 1, 10)).messages
        for message in (watcher.messages(NEWS)[0], stored):
            assert (message.channel, message.offset, message.id) == (NEWS, receipt.offset, sent.id)
            assert (message.event, message.data) == ("test", data)
            assert (message.key, message.version, message.deleted) == (None, None, False)
            assert abs(message.time - time.time() * 1000) < 60_000


@pytest.mark.parametrize("name", ["a", "x" * 200, "ünï.cødé>~$", "a.b.c", "a>b", "{tag}", "100%", "a:b:c", "🎉", '"\\'])
async def test_odd_channel_names_are_just_names(store: Deployment, name: str) -> None:
    channel, beside = f"topic:{name}", f"topic:{name[:-1]}="
    async with store.node() as (broker, watcher):
        await follow(broker, channel, beside)
        (offset,) = await publish(broker, channel)
        await watcher.knows(offset)
        assert [message.channel for message in watcher.messages(channel)] == [channel]
        assert (await read_all(broker, channel, offset - 1))[0] == [offset]
        assert (await read_all(broker, beside, offset - 1))[0] == []


async def test_a_megabyte_passes(store: Deployment) -> None:
    data = b'"' + b"x" * (1 << 20) + b'"'
    async with store.node(page_bytes="4MiB") as (broker, watcher):
        await follow(broker, NEWS)
        receipt = await broker.publish(draft(data=data))
        await watcher.knows(receipt.offset)
        assert watcher.messages(NEWS)[0].data == data
        assert (await broker.read(NEWS, receipt.offset - 1, 10)).messages[0].data == data


async def test_an_unsubscribed_partition_is_silent(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        await broker.unsubscribe([broker.partition(NEWS)])
        told = len(watcher.told)
        await publish(broker, NEWS)
        await follow(broker, NEWS)
        (offset,) = await publish(broker, NEWS)
        await watcher.knows(offset)
        assert [what.offset for kind, _, what in watcher.told[told:] if kind == "message"] == [offset]


# ---------------------------------------------------------------- positions


async def test_a_position_within_retention_goes_on_without_a_reset(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        begun = watcher.told[0][2]
        offsets = await publish(broker, *[NEWS, "topic:other"] * 20)
        mine = offsets[::2]
        for since in (begun, mine[0], mine[7], mine[-1]):
            found, page = await read_all(broker, NEWS, since, limit=7)
            assert page.continuous, (since, page)
            assert found == [offset for offset in mine if offset > since]


async def test_a_channel_that_nobody_used_shows_any_young_position(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        page = await broker.read(NEWS, watcher.told[0][2], 10)
        assert page.continuous
        assert page.messages == []


async def test_unknown_positions_are_refused(store: Deployment) -> None:
    async with store.node() as (broker, _):
        offsets = await publish(broker, NEWS, NEWS)
        for since in (offsets[-1] + 1_000_000_000, 2**53 - 1):
            page = await broker.read(NEWS, since, 10)
            assert (page.continuous, page.reason, page.messages) == (False, "unknown", [])
            assert offsets[-1] <= page.start < since
        page = await broker.read(NEWS, 1, 10)
        assert not page.continuous
        assert [message.offset for message in page.messages] == offsets  # what is held follows


async def test_a_trimmed_position_is_refused_and_the_rest_follows(store: Deployment) -> None:
    async with store.node(channels={"default": {"history_size": 10}}) as (broker, _):
        offsets = await publish(broker, *[NEWS] * 25)
        found, page = await read_all(broker, NEWS, offsets[3])
        assert (page.continuous, page.reason) == (False, "trimmed")
        assert len(found) >= 10
        assert found == offsets[-len(found) :]
        assert (await broker.read(NEWS, offsets[-5], 10)).continuous


async def test_an_expired_position_is_refused(store: Deployment) -> None:
    async with store.node(channels={"default": {"history_ttl": 1}}, idempotency_window=1) as (broker, _):
        first, *_ = await publish(broker, NEWS, NEWS)
        deadline = time.monotonic() + 20
        while first - 1 in [m.offset - 1 for m in (await broker.read(NEWS, first - 1, 10)).messages]:
            assert time.monotonic() < deadline
            await publish(broker, NEWS)
        assert not (await broker.read(NEWS, first - 1, 10)).continuous


# ---------------------------------------------------------------- ids


async def test_the_same_id_publishes_once(store: Deployment) -> None:
    async with store.node() as (ann, watcher), store.node() as (bob, _):
        await follow(ann, NEWS)
        once = draft(id="order-7", principal="key:a", idempotent=True)
        receipts = await asyncio.gather(*(broker.publish(once) for _ in range(20) for broker in (ann, bob)))
        assert len({receipt.offset for receipt in receipts}) == 1
        assert [receipt.duplicate for receipt in receipts].count(False) == 1
        (after,) = await publish(ann, NEWS)
        await watcher.knows(after)
        assert [message.offset for message in watcher.messages(NEWS)] == [receipts[0].offset, after]


async def test_an_id_is_scoped_by_channel_and_principal(store: Deployment) -> None:
    async with store.node() as (broker, _):
        drafts = [
            draft(channel, id="7", principal=principal, idempotent=True)
            for channel in (NEWS, "topic:other")
            for principal in ("key:a", "key:b")
        ]
        assert [(await broker.publish(each)).duplicate for each in drafts] == [False] * 4


async def test_an_id_with_another_body_is_refused(store: Deployment) -> None:
    async with store.node() as (broker, _):
        first = await broker.publish(draft(id="7", data=b"1", idempotent=True))
        with pytest.raises(Problem) as refused:
            await broker.publish(draft(id="7", data=b"2", idempotent=True))
        assert refused.value.code == "id_reused"
        assert (await broker.publish(draft(id="7", data=b"1", idempotent=True))).offset == first.offset


# ---------------------------------------------------------------- keys

KEYED = {"channels": {"room": {"keyed": True, "max_keys": 3}, "state": {"keyed": True, "slow": "latest"}}}


async def test_a_snapshot_is_the_newest_value_of_each_key(store: Deployment) -> None:
    async with store.node(**KEYED) as (broker, _):
        for key, data in (("a", b"1"), ("b", b"1"), ("a", b"2"), ("c", b"1")):
            await broker.publish(draft("room:1", data, key=key))
        await broker.publish(draft("room:1", b"null", key="b", deleted=True))
        snapshot = await broker.snapshot("room:1")
        assert [(message.key, message.data) for message in snapshot.messages] == [("a", b"2"), ("c", b"1")]
        (after,) = await publish(broker, "room:1")
        found, page = await read_all(broker, "room:1", snapshot.offset)
        assert page.continuous
        assert found == [after]


async def test_keys_are_bounded(store: Deployment) -> None:
    async with store.node(**KEYED) as (broker, _):
        for key in "abc":
            await broker.publish(draft("room:1", key=key))
        with pytest.raises(Problem) as refused:
            await broker.publish(draft("room:1", key="d"))
        assert refused.value.code == "too_many_keys"
        await broker.publish(draft("room:1", key="a"))
        await broker.publish(draft("room:1", b"null", key="a", deleted=True))
        await broker.publish(draft("room:1", key="d"))


async def test_versions_under_races_leave_the_highest(store: Deployment) -> None:
    async with store.node(**KEYED) as (ann, watcher), store.node(**KEYED) as (bob, _):
        await follow(ann, "room:1")

        async def attempt(broker: Broker, number: int) -> int | None:
            try:
                return (await broker.publish(draft("room:1", b"%d" % number, key="k", version=(number, 0)))).offset
            except Problem as problem:
                if problem.code != "stale_version":
                    raise
                return None

        numbers = [7, 3, 9, 1, 8, 2, 9, 5, 4, 6] * 3
        offsets = await asyncio.gather(*(attempt((ann, bob)[n % 2], n) for n in numbers))
        (value,) = (await ann.snapshot("room:1")).messages
        assert (value.data, value.version) == (b"9", (9, 0))
        await watcher.knows(max(offset for offset in offsets if offset is not None))
        heard = [message.version for message in watcher.messages("room:1") if message.version]
        assert heard == sorted(set(heard))


async def test_a_slow_reader_of_a_table_gets_the_newest_values(store: Deployment) -> None:
    async with store.node(**KEYED) as (broker, watcher):
        await follow(broker, "state:1")
        begun = watcher.told[0][2]
        for number in range(30):
            await broker.publish(draft("state:1", b"%d" % number, key=f"k{number % 3}"))
        (unkeyed,) = await publish(broker, "state:1")
        page = await broker.read("state:1", begun, 10)
        assert page.continuous
        found = list(page.messages)
        while page.more:
            page = await broker.read("state:1", page.reached, 10)
            found += page.messages
        assert [message.data for message in found] == [b"27", b"28", b"29", b"1"]
        assert found[-1].offset == unkeyed
