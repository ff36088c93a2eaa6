"""Very many subscribers that stop reading at once: within the process's budget, and gone when they stay stuck."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.publishing import publish
from tests.support.raw import RawStream

ANN = token("ann", ["*"])
STOPPED, MESSAGES = 1000, 2000
KIBIBYTE = {"text": "x" * 1000}
SMALL = 4096  # bytes in the kernel for a reader that stops
MIB = 1 << 20
BUDGET = 24 * MIB
CONNECTION = 64 << 10  # bytes: its objects, and what the transport holds of it


def descriptors(gateway: Gateway) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


async def open_readers(gateway: Gateway, transport: str, channel: str, count: int) -> list[RawStream]:
    """Connections whose client reads its welcome and nothing more."""
    readers: list[RawStream] = []
    for _ in range(0, count, 50):
        readers += await asyncio.gather(
            *(RawStream.open(transport, gateway.url, ANN, channel, receive_buffer=SMALL) for _ in range(min(50, count)))
        )
    for reader in readers:
        reader.transport.pause_reading()
    return readers


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_thousand_stopped_readers_stay_within_the_budget(transport: str) -> None:
    channel = "feed:a"
    toml = "[channels.feed]\nhistory_size = 5000"
    with Gateway(memory_budget=BUDGET, recent_bytes="4MiB", heartbeat="60s", toml=toml) as gateway:
        before = gateway.resident
        healthy = await RawStream.open(transport, gateway.url, ANN, channel)
        readers = await open_readers(gateway, transport, channel, STOPPED)
        published: list[int] = []
        used: list[float] = []
        for _ in range(10):
            published += await publish(gateway, channel, [KIBIBYTE] * (MESSAGES // 10))
            await healthy.reach(published[-1])
            used.append(gateway.metric("ringcast_budget_used_bytes"))
        grown = gateway.resident - before
        assert max(used) <= BUDGET
        # The outboxes, the log, and of each connection its own objects and what the transport holds of it.
        assert grown < BUDGET + 4096 * len(published) + STOPPED * CONNECTION
        assert gateway.metric("ringcast_lagging_sessions") == STOPPED, "nobody had to go"
        back = readers[::20]
        for reader in back:
            reader.transport.resume_reading()
        while any(reader.seen[-1:] != published[-1:] for reader in back):  # within the budget while they catch up too
            used.append(await asyncio.to_thread(gateway.metric, "ringcast_budget_used_bytes"))
        assert max(used) <= BUDGET
        assert all(reader.seen == published for reader in back), "they have missed nothing"
        assert healthy.seen == published
        for reader in [healthy, *readers]:
            await reader.close()


IMPATIENT: dict[str, Any] = {
    "heartbeat": "2s", "stuck_after": "7s",  # a dead peer would be found first
    "toml": "[channels.deep]\nhistory_size = 10000\nhistory_bytes = '64MiB'",
}  # fmt: skip


async def behind_by_much(gateway: Gateway) -> tuple[list[RawStream], list[int]]:
    """One reader of each kind that has stopped, and more messages than the kernel takes for them."""
    readers = [(await open_readers(gateway, transport, "deep:a", 1))[0] for transport in ("websocket", "sse")]
    async with await RawStream.open("sse", gateway.url, ANN, "deep:a") as healthy:
        published = await publish(gateway, "deep:a", [KIBIBYTE] * 8000)
        await healthy.reach(published[-1])
        assert healthy.seen == published
    return readers, published


async def test_a_reader_that_stays_stuck_is_closed() -> None:
    """Nothing waits for it for ever: its session, its place and its descriptor are free again."""
    with Gateway(**IMPATIENT) as gateway:
        gateway.metric("ringcast_sessions")
        before = descriptors(gateway)
        readers, published = await behind_by_much(gateway)
        stuck_since = time.monotonic()
        await gateway.until(lambda: gateway.metric("ringcast_connections") == 0, within=20)
        assert 4.0 < time.monotonic() - stuck_since < 15.0
        assert gateway.metric("ringcast_closes_total", code="4102") == 2
        assert gateway.metric("ringcast_sessions") == 0
        await gateway.until(lambda: descriptors(gateway) <= before, said="their descriptors are still there")
        for reader in readers:
            reader.transport.resume_reading()
            await reader.ended
            assert reader.seen == published[: len(reader.seen)] != published


async def test_a_reader_that_is_slow_but_not_stuck_stays() -> None:
    """It reads a little now and then, for longer than a stuck one is given, and has pings to answer behind it all."""
    with Gateway(**IMPATIENT) as gateway:
        readers, published = await behind_by_much(gateway)
        began = time.monotonic()
        while time.monotonic() < began + 8.0:
            for reader in readers:
                reader.transport.resume_reading()
                await reader.reach(published[len(reader.seen) + 60])
                reader.transport.pause_reading()
            await asyncio.sleep(0.1)
        assert all(reader.seen[-1] < published[-1] for reader in readers), "they have caught up too soon"
        for reader in readers:  # all of them, before one is waited for: the others would be stuck meanwhile
            reader.transport.resume_reading()
        for reader in readers:
            await reader.reach(published[-1])
            assert reader.seen == published
            await reader.close()
