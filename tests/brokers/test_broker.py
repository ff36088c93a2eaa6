"""What every broker promises while its store is well: order, ids, keys, and positions that are shown or refused."""

from __future__ import annotations

import asyncio
import time
import unicodedata
from typing import Any

import pytest

from gateway.brokers.base import Broker, Receipt, Snapshot
from gateway.errors import Problem
from tests.support.broker_steps import NEWS, draft, follow, publish, read_all
from tests.support.deployments import Deployment, expire

# ---------------------------------------------------------------- publishing and hearing


async def test_messages_arrive_in_the_order_of_their_receipts(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        await follow(broker, NEWS)
        offsets = await publish(broker, *[NEWS] * 50)
        await watcher.knows(offsets[-1])
        assert [message.offset for message in watcher.messages(NEWS)] == offsets == sorted(set(offsets))
        assert not watcher.gaps()


async def test_a_live_message_brings_its_trace_to_every_node(store: Deployment) -> None:
    async with store.node() as (ann, heard), store.node() as (bob, also):
        traces = [f"00-{n:032x}-{n:016x}-01" for n in (1, 2)]
        for broker in (ann, bob):
            await follow(broker, NEWS)
        sent = [
            await ann.publish(draft(id="7", principal="key:a", idempotent=True, trace=traces[0])),
            await bob.publish(draft()),
            await bob.publish(draft(NEWS, b'{"a":"b c"}', trace=traces[1])),
        ]
        again = await bob.publish(draft(id="7", principal="key:a", idempotent=True, trace=traces[1]))
        assert again.duplicate, "a trace is no part of what a message says"
        for watcher in (heard, also):
            await watcher.knows(sent[-1].offset)
            assert [message.trace for message in watcher.messages(NEWS)] == [traces[0], None, traces[1]]
        assert (await read_all(ann, NEWS, sent[0].offset - 1))[0] == [receipt.offset for receipt in sent]


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


async def test_what_is_published_together_is_stored_in_its_order_and_each_is_told(store: Deployment) -> None:
    async with store.node() as (broker, watcher):
        channels = [f"topic:{number % 3}" for number in range(120)]
        await follow(broker, *channels)
        first = draft(channels[0], b"0", id="again", principal="ann", idempotent=True)
        other = draft(channels[0], b"1", id="again", principal="ann", idempotent=True)
        drafts = [first, *map(draft, channels), first, other, *map(draft, channels)]
        found = await broker.publish_all(drafts)
        assert [getattr(each, "code", None) for each in found] == [None] * 122 + ["id_reused"] + [None] * 120
        repeated = found.pop(121)
        assert repeated == Receipt(first.channel, found[0].offset, "again", duplicate=True)  # type: ignore[union-attr]
        stored = [each for each in found if isinstance(each, Receipt)]
        for channel in channels[:3]:
            offsets = [each.offset for each in stored if each.channel == channel]
            assert offsets == sorted(set(offsets))
            await watcher.knows(offsets[-1])
            assert [message.offset for message in watcher.messages(channel)] == offsets
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


async def test_odd_channel_names_are_just_names(store: Deployment) -> None:
    channels = [f"topic:{name}" for name in odd_names()]
    async with store.node() as (broker, watcher):
        await follow(broker, *channels)
        offsets = dict(zip(channels, await publish(broker, *channels), strict=True))
        for channel, offset in offsets.items():
            await watcher.knows(offset)
            assert [message.offset for message in watcher.messages(channel)] == [offset]
            (message,) = (await broker.read(channel, offset - 1, 10)).messages
            assert (message.channel, message.offset) == (channel, offset)
        beside = f"topic:{'x' * 199}="
        assert (await read_all(broker, beside, min(offsets.values()) - 1))[0] == []
        assert not watcher.gaps()


def odd_names() -> list[str]:
    """What brokers have a meaning for, the longest ones, and a character of each kind that is printable."""
    syntax = [
        "a", ".", "..", ".a", "a.b.c", "a..b", "a.", ">", "a.>", "a>b", "~$", "$SYS.>", "$JS.API", "{tag}", "{}", "}{",
        "100%", "%25", "a:b:c", "?", "[a-z]", "\\", '"\\', "'", "_", "-", "@", "!", "#", "\N{FULLWIDTH ASTERISK}",
    ]  # fmt: skip
    long = ["x" * 200, "x" * 199 + ".", "🎉" * 200, "." * 200]
    kinds: dict[str, list[str]] = {}
    for code in range(0x21, 0x30000):
        character = chr(code)
        if character.isprintable() and character not in " ,*":
            kinds.setdefault(unicodedata.category(character), []).append(character)
    assert len(kinds) >= 20
    samples = ["".join(dict.fromkeys((each[0], each[len(each) // 2], each[-1]))) for each in kinds.values()]
    return list(dict.fromkeys([*syntax, *long, *samples]))


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


async def test_no_page_passes_over_what_expires_while_it_is_read(store: Deployment) -> None:
    """Copies of a log let go of a message one after the other: where it is missing, its loss is told from the first."""
    changes: dict[str, Any] = {"channels": {"default": {"history_ttl": 1}}, "idempotency_window": 1}
    async with store.node(**changes) as (broker, _):

        async def watch(channel: str) -> None:
            offset, _ = await publish(broker, channel, channel)
            async with asyncio.timeout(30):
                while True:
                    page = await broker.read(channel, offset - 1, 1)
                    if not page.messages or page.messages[0].offset > offset:
                        assert not page.continuous
                        return
                    await publish(broker, channel)  # which is when Redis trims

        await asyncio.gather(*(watch(f"topic:{number}") for number in range(10)))


async def test_a_channel_whose_messages_have_expired_shows_every_position_since(store: Deployment) -> None:
    changes: dict[str, Any] = {"channels": {"default": {"history_ttl": 1}}, "idempotency_window": 1, "partitions": 1}
    async with store.node(**changes) as (broker, watcher):
        await follow(broker, NEWS)
        old, *_ = await publish(broker, NEWS, "topic:other")
        async with asyncio.timeout(20):
            while (await broker.read(NEWS, 1, 1)).messages or time.time() * 1e6 < old + 2_000_000:
                await asyncio.sleep(0.1)
                await expire(store)
        (here,) = await publish(broker, "topic:other")
        await watcher.knows(here)
        page = await broker.read(NEWS, here, 10)
        assert (page.continuous, page.messages) == (True, [])
        assert not (await broker.read(NEWS, old - 1, 10)).continuous
        (new,) = await publish(broker, NEWS)
        found, page = await read_all(broker, NEWS, here)
        assert (page.continuous, found) == (True, [new])


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


async def test_a_snapshot_is_the_state_of_its_position_while_others_write(store: Deployment) -> None:
    written: list[tuple[int, str, bytes | None]] = []
    snapshots: list[Snapshot] = []
    ended = asyncio.Event()

    async def keep_writing(broker: Broker, mine: int) -> None:
        number = 0
        while not ended.is_set():
            number += 1
            key, deleted = f"k{number % 3}", number % 7 == mine
            data = b"null" if deleted else b'"%d.%d"' % (mine, number)
            receipt = await broker.publish(draft("room:1", data, key=key, deleted=deleted))
            written.append((receipt.offset, key, None if deleted else data))
            await asyncio.sleep(0)  # a store of this process answers without a pause

    async with store.node(**KEYED) as (ann, _), store.node(**KEYED) as (bob, _):
        writers = [asyncio.create_task(keep_writing(broker, mine)) for mine, broker in enumerate((ann, bob, ann, bob))]
        while len(snapshots) < 30:
            snapshots.append(await (ann, bob)[len(snapshots) % 2].snapshot("room:1"))
            have = len(written)
            while len(written) < have + 5 and not any(writer.done() for writer in writers):  # noqa: ASYNC110
                await asyncio.sleep(0)
        ended.set()
        await asyncio.gather(*writers)
    assert snapshots[0].offset < snapshots[-1].offset
    written.sort()
    for snapshot in snapshots:
        state = {key: data for offset, key, data in written if offset <= snapshot.offset}
        held = {message.key: message.data for message in snapshot.messages}
        assert held == {key: data for key, data in state.items() if data is not None}
        assert all(message.offset <= snapshot.offset for message in snapshot.messages)


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
