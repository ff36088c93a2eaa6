"""Several processes on one port: each serves, a dead one is started again, and all end together."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.clients import TRANSPORTS, connect
from tests.support.command import ringcast
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY
from tests.support.publishing import publish
from tests.support.redis import RedisServer


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def gateway(redis: RedisServer) -> Iterator[Gateway]:
    with Gateway(broker=redis.url, workers=2, node="box", partitions=16, drain=0) as found:
        yield found
        assert not found.complaints()


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


async def nodes_of(gateway: Gateway, count: int = 24) -> set[str]:
    """The nodes that so many connections meet."""
    found = set()
    for _ in range(count):
        async with await connect("websocket", gateway.url, API_KEY, channels=["topic:where"]) as client:
            found.add((await client.frame("welcome"))["node"])
    return found


async def test_every_worker_is_a_node_and_serves_every_transport(gateway: Gateway) -> None:
    assert gateway.ready_line.endswith("node=box broker=redis workers=2")
    assert await nodes_of(gateway) == {"box-1", "box-2"}
    for transport in TRANSPORTS:
        async with await connect(transport, gateway.url, API_KEY, channels=["topic:all"]) as client:
            await client.joined()
            sent = await publish(gateway, "topic:all", [transport])
            assert (await client.message())["offset"] == sent[0]


async def test_a_dead_worker_is_started_again_and_its_client_misses_nothing(gateway: Gateway) -> None:
    before = children(gateway.process.pid)
    assert len(before) == 2
    async with await connect("websocket", gateway.url, API_KEY, channels=["topic:kill"]) as client:
        await client.joined()
        for victim in before:
            os.kill(victim, signal.SIGKILL)
        missed = await _published(gateway)
    async with await connect("websocket", gateway.url, API_KEY, channels=["topic:kill"], cursor=client.cursor) as again:
        assert [frame["offset"] for frame in await again.through(missed)] == [missed]
    await gateway.until(lambda: len(children(gateway.process.pid) - before) == 2, said="both are replaced")
    assert "is started again" in gateway.stderr


async def _published(gateway: Gateway) -> int:
    """The offset of a message that is published as soon as somebody takes it."""
    async with asyncio.timeout(20):
        while True:
            try:
                return (await publish(gateway, "topic:kill", ["missed"]))[0]
            except httpx.TransportError:  # nobody is there yet
                await asyncio.sleep(0.05)


def test_all_end_together(gateway: Gateway) -> None:
    workers = children(gateway.process.pid)
    assert gateway.stop() == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


async def test_workers_whose_parent_died_end_by_themselves(redis: RedisServer) -> None:
    with Gateway(broker=redis.url, workers=2, node="orphan", partitions=16, drain=0) as gateway:
        workers = children(gateway.process.pid)
        gateway.kill()
        await gateway.until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])


def test_a_store_of_one_process_is_refused() -> None:
    answer = ringcast("serve", "--workers", "2", "--port", "0")
    assert answer.returncode == 2
    assert "redis:// or nats://" in answer.stderr


def test_settings_that_cannot_work_end_all_of_it(redis: RedisServer) -> None:
    answer = ringcast("serve", "--workers", "2", "--port", "0", "--broker", redis.url, RINGCAST_PARTITIONS="17")
    assert answer.returncode == 2
    assert "partitions: this deployment has 16" in answer.stderr


def test_a_port_that_is_taken_is_refused(redis: RedisServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = ringcast("serve", "--workers", "2", "--port", port, "--broker", redis.url)
    assert answer.returncode == 2
    assert "choose another --port" in answer.stderr
