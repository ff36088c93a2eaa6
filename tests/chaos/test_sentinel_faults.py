"""Three nodes on a Redis that Sentinels watch: failovers that lose nothing, and such that do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.fleet import FULL, SHORT, Fleet, Size, fleet
from tests.support.redis import RedisSentinel

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sentinel() -> AsyncIterator[RedisSentinel]:
    found = RedisSentinel()
    try:
        await asyncio.to_thread(found.start)
        yield found
    finally:
        await asyncio.to_thread(found.close)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(sentinel: RedisSentinel) -> AsyncIterator[Fleet]:
    """Nodes that check so rarely that all they find out comes from publishing and connecting again."""
    async with fleet("redis-sentinel", [sentinel.url] * 3, 2, check_interval="30s") as found:
        yield found
        assert not found.complaints()


async def test_a_failover_and_the_way_back_reset_nobody(sentinel: RedisSentinel, nodes: Fleet, size: Size) -> None:
    await nodes.ride(size, "failover and fail-back", lambda: there_and_back(sentinel, size))


@pytest.mark.chaos
async def test_a_failover_by_hand_loses_little(sentinel: RedisSentinel, nodes: Fleet) -> None:
    """The old master takes writes, and loses them, until it is told; the nodes know better after a moment."""
    name = "SENTINEL FAILOVER under load, and back"
    report = await nodes.ride(FULL, name, lambda: there_and_back(sentinel, FULL, in_good_order=False), loses="torn")
    assert report.gone < 2 * 3 * FULL.rate


async def there_and_back(sentinel: RedisSentinel, size: Size, *, in_good_order: bool = True) -> None:
    first = sentinel.master
    await asyncio.to_thread(sentinel.fail_over, in_good_order=in_good_order)
    await asyncio.sleep(size.long / 3)
    await asyncio.to_thread(sentinel.fail_over, in_good_order=in_good_order)
    assert sentinel.master is first


async def test_writes_that_a_failover_lost_are_announced(sentinel: RedisSentinel, nodes: Fleet, size: Size) -> None:
    """More is published afterwards than was lost, so that offsets alone do not show it; then the first comes back."""

    async def lose() -> None:
        with nodes.half_of_the_channels():
            await nodes.acknowledged(20)  # and nothing of the others is under way any more
            await asyncio.to_thread(sentinel.detach)
            before = nodes.ledger.published
            await nodes.acknowledged(20)
            await asyncio.to_thread(sentinel.promote)
        await nodes.acknowledged(3 * (nodes.ledger.published - before))
        if size is FULL:
            await asyncio.to_thread(sentinel.rejoin)
            await asyncio.to_thread(sentinel.fail_over)

    report = await nodes.ride(size, "failover that loses writes", lose, loses="some")
    if size is SHORT:
        await asyncio.to_thread(sentinel.rejoin)
    assert report.gone > 10
    assert report.published > 2 * report.gone
    assert 0 < report.resets["lost"] < 2 * size.clients
