"""Everybody comes at once: some are told to come a little later, and in the end all are connected."""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.admission import BURST
from tests.benchmarks.harness import request
from tests.support.gateway import Gateway
from tests.support.keys import token

FULL = b"\x10\x08"  # 4104 in a WebSocket's close frame
LATER = re.compile(rb"retry: (\d+)\n\nevent: ringcast.goodbye\n")
LONG = 300  # seconds that anybody waits for an answer: those that the kernel had no room for try again ever later


class Comer(asyncio.Protocol):
    """A client that asks, and knows by the first answer whether it is in."""

    transport: asyncio.Transport

    def __init__(self, asks: bytes) -> None:
        self.asks = asks
        self.heard = b""
        self.decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.asks)

    def data_received(self, data: bytes) -> None:
        if not self.decided.done():
            self.heard += data
            if b'"type":"welcome"' in self.heard:
                self.decided.set_result(True)
            elif FULL in self.heard or LATER.search(self.heard):
                self.decided.set_result(False)
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.decided.done():
            self.decided.set_exception(ConnectionError(f"closed without a word, after {self.heard!r}"))


@dataclass
class Storm:
    """So many come at once, half of them over each transport, and as often as it takes."""

    port: int
    asks: dict[str, bytes]
    count: int
    began: float = 0.0
    entered: list[float] = field(default_factory=list)  # seconds after it began
    refused: int = 0
    inside: list[asyncio.Transport] = field(default_factory=list)

    async def blow(self) -> None:
        self.began = time.monotonic()
        await asyncio.gather(*(self._come(("websocket", "sse")[n % 2]) for n in range(self.count)))

    async def _come(self, transport: str) -> None:
        most = 1.0
        while True:
            _, comer = await asyncio.get_running_loop().create_connection(
                lambda: Comer(self.asks[transport]), "127.0.0.1", self.port
            )
            if await asyncio.wait_for(comer.decided, LONG):
                self.entered.append(time.monotonic() - self.began)
                self.inside.append(comer.transport)
                return
            self.refused += 1
            told = LATER.search(comer.heard)
            await asyncio.sleep(int(told[1]) / 1000 if told else random.uniform(0, most))
            most = min(30.0, 2 * most)


@pytest.mark.parametrize(
    ("count", "rate", "native"),
    [
        pytest.param(300, 60, True, id="native"),
        pytest.param(300, 60, False, id="asgi", marks=pytest.mark.chaos),
        pytest.param(10_000, 500, True, id="many", marks=pytest.mark.chaos),
    ],
)
async def test_a_storm_ends_with_everybody_connected(count: int, rate: int, native: bool) -> None:
    """No faster than the node says it takes them, whatever the machine does."""
    limits: dict[str, Any] = {"connections_per_address": count, "requests_per_second": 100 * count}
    limits["heartbeat"] = "10m"  # nobody here answers pings
    async with Gateway(native=native, accept_rate=rate, **limits) as gateway:
        bob = token("bob", ["topic:*"])
        asks = {transport: request(transport, bob, ["topic:news"]) for transport in ("websocket", "sse")}
        empty = gateway.resident
        storm = Storm(gateway.port, asks, count)
        await asyncio.wait_for(storm.blow(), 30 + 10 * count / rate)
        assert gateway.metric("ringcast_connections") == count
        assert gateway.metric("ringcast_refusals_total") == gateway.metric("ringcast_refusals_total", code="busy")
        assert gateway.metric("ringcast_refusals_total", code="busy") == storm.refused
        for at, entered in enumerate(sorted(storm.entered), 1):
            assert at <= rate * (BURST + entered) + 1
        late = {bound: gateway.metric("ringcast_loop_lag_seconds_bucket", le=bound) for bound in ("0.1", "1.0", "+Inf")}
        kibibytes = (gateway.resident - empty) / count / 1024
        print(f"{storm.refused} told to come later, all in after {max(storm.entered):.1f} s, {kibibytes:.1f} KiB each;"
              f" of {late['+Inf']:.0f} looks at the loop {late['+Inf'] - late['0.1']:.0f} were 0.1 s late,"
              f" {late['+Inf'] - late['1.0']:.0f} a second")  # fmt: skip
        if count > rate * (BURST + max(storm.entered)) * 0.9:
            assert storm.refused, "it was no storm"
        assert gateway.complaints() == []
        for transport in storm.inside:
            transport.abort()
