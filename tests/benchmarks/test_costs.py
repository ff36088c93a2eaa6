"""The benchmarks in short: nothing is lost, counts are what they must be, no ratio is far from what was measured."""

from __future__ import annotations

import pytest

from tests.benchmarks import comeback, fanout, growth, idle, latency, publish, reader, single, storm
from tests.benchmarks.table import alternate, ratio
from tests.support.deployments import Deployment, RedisAlone
from tests.support.nats import NatsAlone

STORES = [pytest.param(RedisAlone, id="redis"), pytest.param(NatsAlone, id="nats")]


async def test_reading_live_messages_costs_less_than_the_client_librarys_way_on_redis() -> None:
    async with reader.redis_ways(5000) as ways:
        found = await alternate(3, ways)
    assert ratio(found, reader.READER, reader.LISTEN) < 0.4  # measured 0.1
    assert ratio(found, reader.OURS, reader.LISTEN) < 0.7  # measured 0.32


async def test_reading_live_messages_costs_less_than_the_client_librarys_way_on_nats() -> None:
    async with reader.nats_ways(5000) as ways:
        found = await alternate(3, ways)
    assert ratio(found, reader.NATS_OURS, reader.CALLBACK) < 1.2  # measured 0.5


@pytest.mark.parametrize("kind", STORES)
async def test_a_storm_of_users_who_missed_nothing_costs_the_store_nothing(kind: type[Deployment]) -> None:
    deployment = kind()
    await deployment.open()
    try:
        found = await storm.storm(deployment, users=1000, partitions=64)
    finally:
        await deployment.close()
    assert found.counts.subscriptions == 0
    assert found.counts.questions <= 0.1 * found.users
    assert found.recovered == found.users


@pytest.mark.parametrize("kind", STORES)
async def test_a_check_asks_at_most_once_a_partition_and_together(kind: type[Deployment]) -> None:
    deployment = kind()
    await deployment.open()
    try:
        found = await storm.check(deployment, channels=1000, partitions=64, rounds=3)
    finally:
        await deployment.close()
    assert found.partitions >= 64
    assert 0 < found.counts.questions <= found.partitions
    if kind is RedisAlone:
        assert found.counts.reads < found.partitions / 4


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_delivery_costs_little_more_than_its_system_call(transport: str) -> None:
    found = await fanout.measure(transport, subscribers=500, rounds=3, messages=20)
    assert ratio(found, fanout.OURS, fanout.FLOOR) < 4  # measured 1.5; a queue and a task for each cost 6


async def test_messages_that_come_together_leave_together() -> None:
    found = await fanout.measure("websocket", subscribers=500, rounds=3, burst=20, messages=40)
    assert ratio(found, fanout.OURS, fanout.FLOOR) < 0.9  # measured 0.27


def test_an_idle_connection_takes_kilobytes() -> None:
    assert idle.memory("websocket", 1000) < 12  # KiB; measured 3, and the first bring more


async def test_messages_for_one_user_each_arrive_once_and_in_order() -> None:
    found = await single.measure(users=200, rounds=1, messages=1000)
    assert ratio(found, single.OURS, single.ALLOWED) < 20  # measured 3


async def test_who_comes_back_and_missed_nothing_is_told_so_and_sent_nothing() -> None:
    found, _ = await comeback.measure(clients=300, rounds=1, peers=False)  # which looks at each of them
    assert ratio(found, comeback.OURS, comeback.FLOOR) < 100  # measured 15


async def test_a_message_reaches_all_within_a_small_multiple_of_the_least_time() -> None:
    found = await latency.measure(subscribers=200, rounds=1, messages=10)
    assert ratio(found["p50"], latency.OURS, latency.FLOOR) < 30  # measured 2


async def test_publishing_a_line_each_costs_less_than_a_request_each() -> None:
    found, _ = await publish.measure(rounds=1, messages=1000)
    assert ratio(found, publish.SINGLE, publish.EMPTY) < 6  # measured 1.1
    assert ratio(found, publish.NDJSON, publish.SINGLE) < 0.8  # measured 0.33


async def test_a_delivery_costs_the_same_among_many_channels() -> None:
    found = await growth.channels(1, many=2000, deliveries=10_000)
    assert ratio(found.figures, "2,000 channels", f"{growth.FEW_CHANNELS} channels") < 2


async def test_a_fan_out_does_not_hold_the_loop() -> None:
    found = await growth.lag(1, many=1000, seconds=1)  # which nobody may miss a message of
    assert found.figures["most"][0] >= found.figures["99th percentile"][0] > 0
