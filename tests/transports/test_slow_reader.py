"""One subscriber that stops reading, and a thousand: the others do not notice, and memory stays within its bounds."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.publishing import publish
from tests.support.raw import RawStream

ANN = token("ann", ["*"])
READERS, MESSAGES, WINDOW = 100, 20_000, 1000
KEPT = 2000  # messages of a channel of `feed`
KIBIBYTE = {"text": "x" * 1000}
SMALL = 4096  # bytes in the kernel for a reader that stops
MIB = 1 << 20
CHANNELS = f"""
[channels.feed]
history_size = {KEPT}
[channels.deep]
history_size = 100000
history_bytes = "128MiB"
"""
# No pings, which a stopped reader could not answer; little that is recent, so that catching up reads the store.
SETTINGS: dict[str, Any] = {"heartbeat": "60s", "linger": "100ms", "recent_bytes": "8MiB", "toml": CHANNELS}


@pytest.fixture(params=["websocket", "sse"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture(scope="module")
def calm(native: bool) -> Iterator[Gateway]:
    """A second gateway of the same kind, for comparison: nobody stops reading there."""
    with Gateway(native=native, **SETTINGS) as calm:
        yield calm


async def window(gateway: Gateway, channel: str, readers: list[RawStream]) -> tuple[float, list[int]]:
    """Publish some messages and wait until every one of the readers has them all; how long it took, and the offsets."""
    began = time.perf_counter()
    offsets = await publish(gateway, channel, [KIBIBYTE] * WINDOW)
    await asyncio.gather(*(reader.reach(offsets[-1]) for reader in readers))
    return time.perf_counter() - began, offsets


async def test_a_reader_that_stops_costs_the_others_nothing(gateway: Gateway, calm: Gateway, transport: str) -> None:
    channel = f"feed:{transport}"
    there = [await RawStream.open(transport, calm.url, ANN, channel) for _ in range(READERS)]
    others = [await RawStream.open(transport, gateway.url, ANN, channel) for _ in range(READERS - 1)]
    stopped = await RawStream.open(transport, gateway.url, ANN, channel, receive_buffer=SMALL)
    stopped.transport.pause_reading()

    beside: list[float] = []
    alone: list[float] = []
    published: list[int] = []
    before = 0
    for number in range(MESSAGES // WINDOW):
        took, offsets = await window(gateway, channel, others)
        published += offsets
        beside.append(took)
        if number % 4 == 0:
            alone.append((await window(calm, channel, there))[0])
        if number == 6:  # the log and the recent messages are as large as they get
            before = gateway.resident
    grown = gateway.resident - before
    for reader in there:
        await reader.close()

    assert all(reader.seen == published for reader in others)
    assert not stopped.seen
    assert statistics.median(beside) < 1.5 * statistics.median(alone), f"beside {beside}, alone {alone}"
    assert grown < 16 * MIB, f"the gateway grew by {grown / MIB:.1f} MiB"

    # It reads again: what was under way to it, a reset where it stands, all that is held, and then what comes.
    stopped.transport.resume_reading()
    await stopped.reach(published[-1])
    published += (await window(gateway, channel, [*others, stopped]))[1]
    resets = [position for position, offset in enumerate(stopped.seen) if offset < 0]
    assert len(resets) == 1, f"resets at {resets}"
    first = stopped.seen[: resets[0]]
    assert first == published[: len(first)]
    assert -stopped.seen[resets[0]] >= first[-1]
    assert stopped.seen[resets[0] + 1 :] == published[MESSAGES - KEPT :]
    for reader in [*others, stopped]:
        await reader.close()


async def test_a_reader_that_stopped_gets_all_that_is_held(gateway: Gateway, transport: str) -> None:
    """Everything is within retention here, so it misses nothing."""
    channel = f"deep:{transport}"
    other = await RawStream.open(transport, gateway.url, ANN, channel)
    stopped = await RawStream.open(transport, gateway.url, ANN, channel, receive_buffer=SMALL)
    stopped.transport.pause_reading()
    published: list[int] = []
    for _ in range(MESSAGES // WINDOW):
        published += (await window(gateway, channel, [other]))[1]
    stopped.transport.resume_reading()
    publishing = asyncio.create_task(publish(gateway, channel, [KIBIBYTE] * WINDOW))  # while it catches up
    await stopped.reach(published[-1])
    published += await publishing
    published += (await window(gateway, channel, [other, stopped]))[1]
    assert stopped.seen == published
    assert other.seen == published
    for reader in (other, stopped):
        await reader.close()
