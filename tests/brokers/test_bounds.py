"""What a store keeps is bounded in bytes, and says so: logs are trimmed, ids are refused and never forgotten early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.brokers.base import Receipt
from gateway.brokers.redis_store import Names
from gateway.errors import Problem
from tests.brokers.conftest import opened
from tests.support.broker_steps import NEWS, draft, follow, publish, read_all
from tests.support.deployments import Deployment, Memory, RedisAlone

BIG = b'"' + b"x" * 1000 + b'"'


@pytest.fixture(params=[pytest.param(Memory, id="memory"), pytest.param(RedisAlone, id="redis")])
async def bounded(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    """Not NATS: a stream has no bound of bytes for a channel, and remembers the ids of all its messages."""
    async with opened(request.param()) as store:
        yield store


def bytes_of(history_bytes: int, **more: Any) -> dict[str, Any]:
    return {"channels": {"default": {"history_bytes": history_bytes, **more}}}


async def test_a_log_is_trimmed_by_its_bytes_and_a_position_before_is_refused(bounded: Deployment) -> None:
    async with bounded.node(**bytes_of(100_000)) as (broker, watcher):
        await follow(broker, NEWS)
        begun = watcher.told[0][2]
        offsets = [(await broker.publish(draft(data=BIG))).offset for _ in range(30)]
        found, page = await read_all(broker, NEWS, begun)
        assert (page.continuous, found) == (True, offsets)  # no earlier than its bound
        offsets += [(await broker.publish(draft(data=BIG))).offset for _ in range(300)]
        found, page = await read_all(broker, NEWS, begun)
        assert (page.continuous, page.reason) == (False, "trimmed")
        assert found == offsets[-len(found) :]
        assert 30 <= len(found) <= 110
        found, page = await read_all(broker, NEWS, offsets[-20])
        assert (page.continuous, found) == (True, offsets[-19:])


async def test_one_message_larger_than_the_bound_is_kept(bounded: Deployment) -> None:
    async with bounded.node(**bytes_of(500)) as (broker, _):
        for _ in range(3):
            receipt = await broker.publish(draft(data=BIG))
            found, _ = await read_all(broker, NEWS, receipt.offset - 1)
            assert found == [receipt.offset]


async def test_small_messages_are_bounded_by_their_number_alone() -> None:
    async with opened(RedisAlone()) as store, store.node(**bytes_of(16 << 20, history_size=50)) as (broker, _):
        offsets = await publish(broker, *[NEWS] * 60)
        assert len((await read_all(broker, NEWS, offsets[0]))[0]) == 50
        with store.server.client() as client:
            client_: Any = client
            assert "cmdstat_xrange" not in client_.info("commandstats") or (
                client_.info("commandstats")["cmdstat_xrange"]["calls"] <= 2  # the two pages read above
            )


async def test_entries_of_a_release_that_kept_no_sum_are_trimmed_too() -> None:
    async with opened(RedisAlone()) as store, store.node(**bytes_of(20_000)) as (broker, _):
        first, *_ = offsets = [(await broker.publish(draft(data=BIG))).offset for _ in range(10)]
        log = Names("ringcast", 16).log(broker.partition(NEWS), NEWS)
        with store.server.client() as client:
            client_: Any = client
            client_.xdel(log, *(id for id, _ in client_.xrange(log)))
            for number in range(1, 6):  # ids of a stream only grow
                entry = {"prev": first, "edge": offsets[-1], "m": b"1" + b"x" * 1000}
                client_.xadd(log, entry, id=f"{offsets[-1]}-{number}")
        for _ in range(60):
            await broker.publish(draft(data=BIG))
        found, page = await read_all(broker, NEWS, first)
        assert not page.continuous
        assert 15 <= len(found) <= 21


async def test_ids_beyond_their_bytes_are_refused_and_repeats_answered() -> None:
    few: dict[str, Any] = {"idempotency_bytes": 10_000, "idempotency_window": 2}
    async with opened(RedisAlone()) as store, store.node(**few) as (broker, _):
        ids = [draft(id=str(number), principal="p", idempotent=True) for number in range(100)]
        told = await asyncio.gather(*(broker.publish(each) for each in ids), return_exceptions=True)
        first = told[0]
        assert isinstance(first, Receipt)
        refused = [problem for problem in told if isinstance(problem, Problem)]
        assert {(problem.code, problem.retry_after) for problem in refused} == {("ids_full", 5)}
        assert 50 < len(refused) < 85
        assert broker.ids_used() <= 10_000
        again = await broker.publish(draft(id="0", principal="p", idempotent=True))
        assert (again.duplicate, again.offset) == (True, first.offset)
        await publish(broker, NEWS)  # which has no id
        async with asyncio.timeout(15):
            while True:  # the window passes
                try:
                    receipt = await broker.publish(draft(id="new", principal="p", idempotent=True))
                    break
                except Problem:
                    await asyncio.sleep(0.1)
        assert not receipt.duplicate


async def test_repeats_and_refusals_take_no_room(bounded: Deployment) -> None:
    async with bounded.node(channels={"room": {"keyed": True}}) as (broker, _):
        await broker.publish(draft("room:1", key="k", version=(5,), id="0", principal="p", idempotent=True))
        used = broker.ids_used()
        assert used > 0
        for number in range(20):
            await broker.publish(draft("room:1", key="k", version=(5,), id="0", principal="p", idempotent=True))
            with pytest.raises(Problem):
                await broker.publish(
                    draft("room:1", key="k", version=(1,), id=f"old{number}", principal="p", idempotent=True)
                )
        assert broker.ids_used() == used
