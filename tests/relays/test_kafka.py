"""`ringcast relay kafka`, the command, between a real broker and a real gateway."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]  # it has none
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete  # type: ignore[import-untyped]

from gateway.message import new_id
from tests.support.command import Running, ringcast
from tests.support.gateway import Gateway
from tests.support.kafka import PASSWORD, USER, KafkaBroker, missing
from tests.support.keys import API_KEY
from tests.support.outbox import history
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "")

PARTITIONS = 8
KEYS = [f"key-{n}" for n in range(40)]
TOML = '[channels.default]\nhistory_size = 100000\nhistory_ttl = "1h"\n'


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaBroker]:
    with KafkaBroker() as broker:
        yield broker


@pytest.fixture
async def topic(broker: KafkaBroker) -> str:
    name = f"orders-{new_id().lower()}"
    await broker.make(name, PARTITIONS)
    return name


@asynccontextmanager
async def producer(broker: KafkaBroker, **options: Any) -> AsyncIterator[Any]:
    made = AIOKafkaProducer(bootstrap_servers=broker.servers, enable_idempotence=True, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def send(broker: KafkaBroker, topic: str, *records: tuple[str | None, Any], **options: Any) -> None:
    async with producer(broker) as producing:
        for key, value in records:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            await producing.send_and_wait(topic, data, key=key.encode() if key else None, partition=0, **options)


def command(broker: KafkaBroker, url: str, topic: str, *options: str) -> tuple[list[str], dict[str, str]]:
    env = {"RINGCAST_URL": url, "RINGCAST_API_KEY": API_KEY, "RINGCAST_RELAY_KAFKA": broker.servers}
    return ["relay", "kafka", topic, "--session", "1s", "--group", topic, *options], env


def relay(broker: KafkaBroker, url: str, topic: str, *options: str) -> Running:
    arguments, env = command(broker, url, topic, *options)
    return Running(*arguments, **env)


def data(gateway: Gateway, channel: str) -> list[Any]:
    return [message["data"] for message in history(gateway, channel)]


async def committed(broker: KafkaBroker, topic: str) -> dict[int, int]:
    """What the relays' group has committed, by partition; 0 where nothing."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.servers, group_id=topic, enable_auto_commit=False)
    await consumer.start()
    try:
        return {n: await consumer.committed(TopicPartition(topic, n)) or 0 for n in range(PARTITIONS)}
    finally:
        await consumer.stop()


async def ends(broker: KafkaBroker, topic: str) -> dict[int, int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.servers)
    await consumer.start()
    try:
        found = await consumer.end_offsets([TopicPartition(topic, n) for n in range(PARTITIONS)])
        return {partition.partition: offset for partition, offset in found.items()}
    finally:
        await consumer.stop()


async def drained(broker: KafkaBroker, topic: str, within: float = 60) -> None:
    """Wait until the group has committed all that the topic holds."""
    end, deadline = await ends(broker, topic), time.monotonic() + within
    while (done := await committed(broker, topic)) != end:
        assert time.monotonic() < deadline, f"committed {done} of {end} after {within:g} s"
        await asyncio.sleep(0.05)


async def test_a_record_is_published_as_its_value_says(broker: KafkaBroker, topic: str, gateway: Gateway) -> None:
    channel = f"topic:{topic}"
    await send(
        broker, topic, ("k", {"channel": channel, "event": "order.shipped", "data": {"n": 1, "text": "zwölf"}}),
        ("k", b"no publish"), ("k", {"channel": "jobs:1", "data": 2}), ("k", {"channel": channel, "data": 3}),
    )  # fmt: skip
    with relay(broker, gateway.url, topic) as running:
        assert running.line() == "ringcast relay ready"
        await gateway.until(lambda: len(data(gateway, channel)) == 2, within=30)
        await drained(broker, topic)
        assert running.end(signal.SIGTERM) == 0
    first, last = history(gateway, channel)
    assert (first["event"], first["data"], last["data"]) == ("order.shipped", {"n": 1, "text": "zwölf"}, 3)
    assert first["id"].startswith(f"kafka:{topic}:0:0:")
    assert f"record {topic}:0:1 is passed over, refused (invalid): " in running.said["err"]
    assert f"record {topic}:0:2 is passed over, refused (reserved_channel): " in running.said["err"]


async def test_records_may_be_the_data_of_their_keys_channels(
    broker: KafkaBroker, topic: str, gateway: Gateway
) -> None:
    user = f"{topic}-ann"
    await send(broker, topic, (user, 1), (None, "no key"))
    await send(broker, topic, (user, [2]), headers=[("event", b"paid")])
    with relay(broker, gateway.url, topic, "--channel", "user:{key}", "--event", "order"):
        await drained(broker, topic)
    assert [(m["event"], m["data"]) for m in history(gateway, f"user:{user}")] == [("order", 1), ("paid", [2])]


async def test_what_a_transaction_took_back_is_never_published(
    broker: KafkaBroker, topic: str, gateway: Gateway
) -> None:
    async with producer(broker, transactional_id=topic) as producing:
        for value, commits in ((1, True), (2, False), (3, True)):
            await producing.begin_transaction()
            await producing.send_and_wait(topic, json.dumps(value).encode(), partition=0)
            await (producing.commit_transaction() if commits else producing.abort_transaction())
    with relay(broker, gateway.url, topic, "--channel", "topic:{topic}"):
        await gateway.until(lambda: len(data(gateway, f"topic:{topic}")) == 2, within=30)
    assert data(gateway, f"topic:{topic}") == [1, 3]


async def test_a_relay_that_is_told_to_stop_leaves_nothing_in_doubt(
    broker: KafkaBroker, topic: str, gateway: Gateway
) -> None:
    channel = f"topic:{topic}"
    await _produce(broker, topic, range(20_000), partition=0)
    with relay(broker, gateway.url, topic, "--channel", channel, "--batch", "50") as running:
        await gateway.until(lambda: any(True for _ in history(gateway, channel)), within=30)
        assert running.end(signal.SIGTERM) == 0
    with gateway.http() as http:
        newest = http.get("/v1/history", params={"channel": channel, "since": "latest"}).json()["offset"]
        told = http.get("/v1/history", params={"channel": channel, "since": newest - 1}).json()["messages"]
    done = (await committed(broker, topic))[0]
    assert 0 < done < 20_000
    assert told[-1]["data"] == done - 1, "what is stored and what is committed are not the same"


@pytest.mark.parametrize(("window", "copies"), [("1s", 1), ("1h", 2)])
async def test_records_in_doubt_for_longer_than_the_window_are_looked_up_in_the_log(
    broker: KafkaBroker, topic: str, window: str, copies: int
) -> None:
    """With a relay that believes in a longer window than the gateway has, they are stored twice."""
    channel = f"topic:{topic}"
    options = ("--channel", channel)
    async with Gateway(idempotency_window="1s", ticket_ttl="1s") as gateway, Proxy(gateway.port) as proxy:
        proxy.buffer("/v1/publish")
        await send(broker, topic, *(("k", n) for n in range(3)))
        with relay(broker, proxy.url, topic, *options) as running:
            await gateway.until(lambda: len(data(gateway, channel)) == 3, within=30, said="stored, but never answered")
            running.kill()
        await asyncio.sleep(1.2)  # the window passes
        await send(broker, topic, ("k", "new"))
        proxy.heal("/v1/publish")
        with relay(broker, proxy.url, topic, *options, "--window", window) as running:
            await drained(broker, topic)
            assert running.end(signal.SIGTERM) == 0
        told = data(gateway, channel)
        assert ("3 of them are in their channels' logs" in running.said["err"]) == (copies == 1)
    assert told == [0, 1, 2, *([0, 1, 2] if copies == 2 else []), "new"]


async def test_records_that_left_the_topic_before_they_were_relayed_are_told(
    broker: KafkaBroker, topic: str, gateway: Gateway
) -> None:
    options = ("--channel", "topic:{topic}")
    await send(broker, topic, ("k", 0))
    with relay(broker, gateway.url, topic, *options):
        await drained(broker, topic)
    await send(broker, topic, ("k", 1), ("k", 2), ("k", 3))
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.servers)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=3)})
    await admin.close()
    with relay(broker, gateway.url, topic, *options) as running:
        told = running.until("has left the topic")
        await drained(broker, topic)
    assert f"{topic}:0: what came from offset 1 on" in told
    assert data(gateway, f"topic:{topic}") == [0, 3]


async def test_a_relay_logs_in_and_tells_when_it_may_not(broker: KafkaBroker, topic: str, gateway: Gateway) -> None:
    await send(broker, topic, ("k", 1))
    options = ("--channel", "topic:{topic}", "--security", "SASL_PLAINTEXT", "--user", USER)
    arguments, env = command(broker, gateway.url, topic, *options)
    env["RINGCAST_RELAY_KAFKA"] = f"127.0.0.1:{broker.sasl_port}"
    with Running(*arguments, **env, RINGCAST_RELAY_KAFKA_PASSWORD="wrong") as refused:
        told = refused.until("trying again")
        assert "wrong" not in told
    with Running(*arguments, **env, RINGCAST_RELAY_KAFKA_PASSWORD=PASSWORD):
        await drained(broker, topic)
    assert data(gateway, f"topic:{topic}") == [1]


def test_the_command_says_what_is_wrong() -> None:
    done = ringcast("relay", "kafka", "t", "--security", "TLS")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--security is PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL" in done.stderr
    done = ringcast("relay", "kafka", "t", "--ca", "/nowhere.pem")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--ca /nowhere.pem: no certificates can be read" in done.stderr
    assert "Missing argument 'TOPIC...'" in ringcast("relay", "kafka").stderr


# the ledger


async def _produce(broker: KafkaBroker, topic: str, values: Sequence[int], **where: int) -> None:
    """Write values, spread over the keys where no partition is named."""
    async with producer(broker, linger_ms=5) as producing:
        sent = []
        for n in values:
            sent.append(await producing.send(topic, str(n).encode(), key=KEYS[n % len(KEYS)].encode(), **where))
            if len(sent) == 1000:
                await asyncio.gather(*sent)
                sent.clear()
        await asyncio.gather(*sent)


class Deployment:
    """A gateway that survives its death because its store is Redis, and relays between it and the broker."""

    def __init__(self, stack: ExitStack, broker: KafkaBroker, topic: str, relays: int) -> None:
        redis = stack.enter_context(RedisServer("--appendonly", "yes"))
        self.gateway = stack.enter_context(Gateway(broker=redis.url, toml=TOML))
        self._broker, self._topic, self._stack = broker, topic, stack
        self._relays = [self._start() for _ in range(relays)]

    def _start(self) -> Running:
        channel = f"topic:{self._topic}-{{key}}"
        return self._stack.enter_context(relay(self._broker, self.gateway.url, self._topic, "--channel", channel))

    def kill_relay(self, number: int) -> None:
        self._relays[number].kill()
        self._relays[number] = self._start()

    def stored(self, topic: str) -> dict[str, list[int]]:
        return {key: data(self.gateway, f"topic:{topic}-{key}") for key in KEYS}


def _expected(count: int) -> dict[str, list[int]]:
    expected: dict[str, list[int]] = defaultdict(list)
    for n in range(count):
        expected[KEYS[n % len(KEYS)]].append(n)
    return expected


async def test_every_record_arrives_once_and_in_its_key_s_order_whoever_is_killed(
    broker: KafkaBroker, topic: str
) -> None:
    with ExitStack() as stack:
        deployment = Deployment(stack, broker, topic, relays=2)
        producing = asyncio.create_task(_produce(broker, topic, range(4000)))
        first = f"topic:{topic}-{KEYS[0]}"
        await deployment.gateway.until(lambda: bool(data(deployment.gateway, first)), within=30)
        await asyncio.to_thread(deployment.kill_relay, 0)
        await asyncio.to_thread(deployment.gateway.restart, kill=True)
        await asyncio.to_thread(deployment.kill_relay, 1)
        await producing
        await drained(broker, topic)
        assert deployment.stored(topic) == _expected(4000)


@pytest.mark.chaos
async def test_100_000_records_arrive_once_and_in_their_keys_order_whoever_is_killed(
    broker: KafkaBroker, topic: str
) -> None:
    chance = random.Random(7)
    began, killed = time.monotonic(), 0
    with ExitStack() as stack:
        deployment = Deployment(stack, broker, topic, relays=3)
        kills = [*(lambda n=n: deployment.kill_relay(n) for n in range(3)),
                 lambda: deployment.gateway.restart(kill=True), broker.restart]  # fmt: skip
        producing = asyncio.create_task(_produce(broker, topic, range(100_000)))
        end = await ends(broker, topic)
        while not producing.done() or await committed(broker, topic) != end:
            await asyncio.sleep(chance.uniform(0.5, 5))
            await asyncio.to_thread(chance.choice(kills))
            killed += 1
            end = await ends(broker, topic)
            assert time.monotonic() - began < 1500, f"committed {await committed(broker, topic)} of {end}"
        await producing
        assert deployment.stored(topic) == _expected(100_000)
    print(f"100,000 records in {time.monotonic() - began:.0f} s, {killed} kills")
    assert killed >= 5
