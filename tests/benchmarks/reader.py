"""What a live message costs a node until it is told, beside the client libraries' own ways to read.

    python -m tests.benchmarks.reader [--messages 50000] [--rounds 7]

CPU time of this process for a burst of messages that another process sends; all ways hear bytes of the same kind and
number. Ours also decodes each message and checks its chain, which the others leave to the application. Fails if one is
missing or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
from nats.aio.msg import Msg
from redis.asyncio import Redis

from gateway.brokers import nats_format
from gateway.brokers import redis_store as store
from gateway.brokers.nats import NatsBroker
from gateway.brokers.redis import RedisBroker
from gateway.brokers.redis_live import Address, LiveConnection
from gateway.message import Message
from tests.benchmarks.table import Round, Table, alternate
from tests.support.broker_steps import NEWS, draft
from tests.support.deployments import RedisAlone
from tests.support.nats import NatsInMemory

DATA = b'"%b"' % (b"x" * 126)
OURS, READER, LISTEN = "ours: read, decoded, chained, told", "ours: the reader alone", "redis-py: pubsub.listen()"
NATS_OURS, CALLBACK = "ours: read, decoded, chained, told", "nats-py: its callback"
_SEND = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as server, open(sys.argv[2], "rb") as file:
    wire = file.read()
    print(flush=True)
    input()
    server.sendall(wire)
    server.settimeout(0.5)  # what is answered is read, until nothing comes any more
    try:
        while server.recv(1 << 20):
            pass
    except TimeoutError:
        pass
"""


class Count:
    """The events of a broker; done at the last of `expected` messages."""

    def __init__(self) -> None:
        self.expected = 0
        self.heard = 0
        self.last = 0
        self.done = asyncio.Event()

    def expect(self, messages: int) -> None:
        self.expected, self.heard = messages, 0
        self.done.clear()

    def message(self, partition: int, message: Message) -> None:
        self.one(message.offset)

    def one(self, offset: int) -> None:
        assert offset > self.last, "out of order"
        self.last = offset
        self.heard += 1
        if self.heard == self.expected:
            self.done.set()

    def watermark(self, partition: int, offset: int) -> None:
        self.last = max(self.last, offset)

    def gap(self, partition: int, offset: int) -> None:
        raise AssertionError("a message was lost")


async def burst(port: int, wire: bytes, count: Count, messages: int) -> float:
    """Microseconds of this process's CPU a message, from the first to the last of what another process sends."""
    count.expect(messages)
    with tempfile.NamedTemporaryFile() as file:
        file.write(wire)
        file.flush()
        sender = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _SEND, str(port), file.name, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert sender.stdin is not None
        assert sender.stdout is not None
        await sender.stdout.readline()  # it is ready
        began = time.process_time()
        sender.stdin.write(b"\n")
        async with asyncio.timeout(60):
            await count.done.wait()
        spent = time.process_time() - began
        await sender.communicate()
    await asyncio.sleep(0.05)
    assert count.heard == messages, f"{count.heard} of {messages} were heard"
    return spent * 1e6 / messages


# ---------------------------------------------------------------- Redis


@asynccontextmanager
async def redis_ways(messages: int) -> AsyncIterator[dict[str, Round]]:
    deployment = RedisAlone()
    await deployment.open()
    try:
        yield {
            OURS: lambda: _redis_ours(deployment, messages),
            READER: lambda: _redis_reader(deployment, messages),
            LISTEN: lambda: _redis_listen(deployment, messages),
        }
    finally:
        await deployment.close()


def _published(subject: bytes, first: int, history: str, messages: int) -> bytes:
    """What announces messages that follow on each other, as PUBLISH commands."""
    body = store.encode_body(draft(data=DATA))
    commands = []
    for offset in range(first + 1, first + messages + 1):
        payload = b"1 %d %d %b %b %b" % (offset - 1, offset, history.encode(), NEWS.encode(), body)
        words = b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(subject), subject, len(payload), payload)
        commands.append(b"*3\r\n$7\r\nPUBLISH\r\n" + words)
    return b"".join(commands)


async def _redis_ours(deployment: RedisAlone, messages: int) -> float:
    broker, count = RedisBroker(deployment.settings()), Count()
    await broker.start()
    running = asyncio.create_task(broker.run(count))
    try:
        while not broker.connected:  # noqa: ASYNC110 - it is a property
            await asyncio.sleep(0.01)
        partition = broker.partition(NEWS)
        await broker.subscribe([partition])
        at = broker.chain.followed[partition]
        wire = _published(broker.names.subject(partition), at.watermark, at.history, messages)
        return await burst(deployment.server.port, wire, count, messages)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await broker.close()


async def _redis_reader(deployment: RedisAlone, messages: int) -> float:
    """The connection and its parser, with payloads that are only counted."""
    count, numbers = Count(), iter(range(1, 1 << 40))

    def on_frame(subject: bytes, payload: bytes) -> None:
        count.one(next(numbers))

    live = await LiveConnection.open(Address("127.0.0.1", deployment.server.port), False, on_frame, lambda _: None, 2)
    try:
        await live.subscribe([b"bench"], 2)
        return await burst(deployment.server.port, _published(b"bench", 1, "0" * 16, messages), count, messages)
    finally:
        live.close()


async def _redis_listen(deployment: RedisAlone, messages: int) -> float:
    count = Count()
    async with Redis(port=deployment.server.port) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("bench")

        async def listen() -> None:
            number = 0
            async for message in pubsub.listen():
                if message["type"] == "message":
                    number += 1
                    count.one(number)

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.05)
        spent = await burst(deployment.server.port, _published(b"bench", 1, "0" * 16, messages), count, messages)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        return spent


# ---------------------------------------------------------------- NATS


@asynccontextmanager
async def nats_ways(messages: int) -> AsyncIterator[dict[str, Round]]:
    deployment = NatsInMemory()
    await deployment.open()
    try:
        yield {
            NATS_OURS: lambda: _nats_ours(deployment, messages),
            CALLBACK: lambda: _nats_callback(deployment, messages),
        }
    finally:
        await deployment.close()


async def _nats(deployment: NatsInMemory, messages: int, listen: Callable[[NatsBroker, Count], Any]) -> float:
    """Messages are stored by the stream, which republishes them; `listen` makes the one who hears them."""
    broker, count = NatsBroker(deployment.settings(channels={"default": {"history_size": 1_000_000}})), Count()
    await broker.start()
    running = asyncio.create_task(broker.run(count))
    try:
        while not broker.connected:  # noqa: ASYNC110 - it is a property
            await asyncio.sleep(0.01)
        await broker.publish(draft(data=DATA))
        number = broker.partition(NEWS)
        async with listen(broker, count):
            payload = nats_format.encode(draft(data=DATA), broker.lines[number].lineage.history, 1, None)
            subject = broker.names.message(number, NEWS, None).encode()
            one = b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload)
            wire = b'CONNECT {"verbose":false}\r\n' + one * messages
            return await burst(deployment.servers[0].port, wire, count, messages)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await broker.close()


async def _nats_ours(deployment: NatsInMemory, messages: int) -> float:
    @asynccontextmanager
    async def listen(broker: NatsBroker, count: Count) -> AsyncIterator[None]:
        await broker.subscribe([broker.partition(NEWS)])
        yield

    return await _nats(deployment, messages, listen)


async def _nats_callback(deployment: NatsInMemory, messages: int) -> float:
    @asynccontextmanager
    async def listen(broker: NatsBroker, count: Count) -> AsyncIterator[None]:
        client = await nats.connect(deployment.servers[0].url)

        async def heard(msg: Msg) -> None:
            count.one(count.last + 1)

        try:
            subject = f"{broker.names.live(broker.partition(NEWS))}.>"
            await client.subscribe(subject, cb=heard, pending_msgs_limit=0, pending_bytes_limit=64 << 20)
            await client.flush()
            yield
        finally:
            await client.close()

    return await _nats(deployment, messages, listen)


async def tables(rounds: int, messages: int = 50_000) -> list[Table]:
    found = []
    for name, ways, ours, beside, limit in (
        ("Redis", redis_ways, OURS, LISTEN, 0.35), ("NATS", nats_ways, NATS_OURS, CALLBACK, 1.0),
    ):  # fmt: skip
        async with ways(messages) as there:
            table = Table(f"A live message on {name}", "µs of CPU", await alternate(rounds, there), beside)
        table.aim(f"A node's ingest on {name}", ours, beside, limit, f"x {beside}")
        table.show()
        found.append(table)
    return found


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--messages", type=int, default=50_000)
    ask.add_argument("--rounds", type=int, default=7)
    a = ask.parse_args()
    await tables(a.rounds, a.messages)


if __name__ == "__main__":
    asyncio.run(main())
