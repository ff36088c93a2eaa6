"""Three real nodes on one store, behind one address, and a ride: load, a fault, and the ledger's verdict on both."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from gateway.message import partition_of
from gateway.verify.load import Load
from tests.support.clients import decode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import bearer, token
from tests.support.ledger import Loses, StoreLedger
from tests.support.load import Crowd, clients_of, crowd, load
from tests.support.proxy import RoundRobin

TOML = """
[channels.default]
history_size = 100000
[channels.room]
history_size = 100000
keyed = true
"""
SETTINGS: dict[str, Any] = {
    "heartbeat": "1s", "check_interval": "2s", "drain_wait": "300ms", "drain": "700ms", "poll_interval": "800ms",
    "node_ttl": "2s", "toml": TOML,
}  # fmt: skip
SETTLED_WITHIN = 60.0  # seconds after the last publish: back-offs of clients that were refused a few times are in it
PAGE = 100


@dataclass(frozen=True)
class Size:
    """How much of everything; `long` is for faults that last."""

    clients: int
    rate: float  # messages a second
    seconds: float
    processes: int
    long: float

    @property
    def channels(self) -> int:
        return self.clients // 5  # two a client: ten clients a message


SHORT = Size(clients=30, rate=60, seconds=3, processes=1, long=3)
FULL = Size(clients=300, rate=200, seconds=60, processes=2, long=15)


@dataclass
class Report:
    """What became of one ride."""

    store: str
    fault: str
    clients: int
    published: int
    given_up: int
    gone: int  # acknowledged, and lost by the store
    deliveries: int
    resets: dict[str, int]
    seconds: float
    settled: float  # seconds from the last publish until everyone had all
    delay_ms: list[float]  # median, 99 %, worst: from acknowledgement to application
    crowd: list[str]  # how busy the clients' own processes were
    faults: dict[str, int]


class Fleet:
    """`nodes` behind `proxy`. Stays as it was told to be until the next ride."""

    def __init__(self, store: str, brokers: Sequence[str], crowd: Crowd, **settings: Any) -> None:
        self.store = store
        self.partitions = int(settings.get("partitions", 1024))
        self.nodes = [
            Gateway(broker=broker, node=name, **(SETTINGS | settings))
            for name, broker in zip("abc", brokers, strict=True)
        ]
        self.proxy = RoundRobin([node.port for node in self.nodes])
        self.crowd = crowd
        self.channels: list[str] = []  # of the ride under way
        self.ledger = StoreLedger(lambda _: 0)
        self._load: Load | None = None
        self._rides = itertools.count()

    async def each(self, work: Callable[[Gateway], Any]) -> None:
        """Do this with all nodes at once."""
        with ThreadPoolExecutor() as pool:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(pool, work, node) for node in self.nodes))

    async def ride(
        self, size: Size, name: str, fault: Callable[[], Awaitable[None]], loses: Loses = "nothing"
    ) -> Report:
        """Load, with the fault in its midst; then everyone gets what is owed to them. Fails by the ledger's verdict."""
        await self.ready()
        number = next(self._rides)
        channels = [f"{'room' if n % 4 == 3 else 'topic'}:{number}-{n}" for n in range(size.channels)]
        self.channels = channels
        self.ledger = ledger = StoreLedger(lambda channel: partition_of(channel, self.partitions))
        await self._level(channels)
        self._load = publishing = load(ledger, self.proxy.url, channels, size.rate)
        began = time.monotonic()
        clients = clients_of(channels, size.clients, 2, f"r{number}-")
        async with self.crowd.following(ledger, self.proxy.url, clients) as busy:
            await self._publish(publishing, size, fault)
            ended = time.monotonic()
            await self._read_store(ledger, channels)
            while ledger.missing(loses) and time.monotonic() < ended + SETTLED_WITHIN:  # noqa: ASYNC110 - asks all it heard
                await asyncio.sleep(0.2)
            settled = time.monotonic() - ended
            await asyncio.sleep(0.3)  # for what comes once too often
        found = ledger.verdict(loses)
        report = Report(
            self.store, name, size.clients, ledger.published, publishing.given_up, ledger.gone(), ledger.deliveries,
            dict(ledger.reasons), round(time.monotonic() - began, 1), round(settled, 1), _spread(ledger.delays),
            [f"{100 * each.cpu / each.wall:.0f} % late {each.late:.2f} s" for each in busy],
            dict(Counter(fault.kind for fault in found)),
        )  # fmt: skip
        print(report)
        await asyncio.to_thread(_keep, report)
        assert not found, "\n".join(map(str, [*found[:20], report]))
        return report

    async def _level(self, channels: Sequence[str]) -> None:
        """Let each node stand where the store does: of an earlier ride's loss one may be yet to tell."""

        def positions(node: Gateway) -> dict[str, int]:
            with node.http(token("level", ["topic:*", "room:*"])) as http:
                return {channel: _position(http, channel) for channel in channels}

        await self.each(positions)  # all follow all partitions, and have claimed what they know of them
        first = {}
        for channel in channels:
            key = "level" if channel.startswith("room:") else None
            receipt = await asyncio.to_thread(self.nodes[0].publish, channel, "level", key=key)
            first[channel] = receipt["offset"]
            self.ledger.trying(channel, receipt["id"])
            self.ledger.was_acknowledged(channel, receipt["offset"], receipt["id"], time.monotonic())
        for node in self.nodes:

            def level(node: Gateway = node) -> bool:
                at = positions(node)
                return all(at[channel] >= offset for channel, offset in first.items())

            await node.until(level, 30.0, "a node is level with the store")

    @contextmanager
    def half_of_the_channels(self) -> Iterator[None]:
        """Only every other one is published to: the store can lose nothing of the rest."""
        assert self._load is not None
        self._load.channels = self.channels[::2]
        try:
            yield
        finally:
            self._load.channels = self.channels

    async def acknowledged(self, count: int) -> None:
        """Wait until so many publishes that are sent from now on are acknowledged, however fast the machine is."""
        end = len(self.ledger.tried) + count  # of those that were sent before, all may still be under way
        async with asyncio.timeout(90):
            while self.ledger.published < end:  # noqa: ASYNC110 - counts what publishers tell
                await asyncio.sleep(0.05)

    async def _publish(self, publishing: Load, size: Size, fault: Callable[[], Awaitable[None]]) -> None:
        stop = asyncio.Event()
        loading = asyncio.create_task(publishing.run(stop))
        try:
            await asyncio.sleep(size.seconds * 0.3)
            until = time.monotonic() + size.seconds * 0.7
            await fault()
            await asyncio.sleep(max(0.0, until - time.monotonic()))
            await self.acknowledged(size.channels)
        finally:
            stop.set()
            await loading

    async def _read_store(self, ledger: StoreLedger, channels: Sequence[str]) -> None:
        """What the store holds of each channel, as any node reads it."""
        async with httpx.AsyncClient(base_url=self.proxy.url, headers=bearer(), timeout=20, trust_env=False) as http:
            for channel in channels:
                held: list[tuple[int, str]] = []
                since, more = "earliest", True
                while more:
                    page = await _page(http, channel, since)
                    held += [(message["offset"], message["id"]) for message in page["messages"]]
                    since, more = str(page["offset"]), page["more"]
                ledger.holds(channel, held)

    async def ready(self, within: float = 30.0) -> None:
        """Whatever an earlier ride that failed has left behind."""
        await self.each(_revive)
        for node in self.nodes:
            await node.until(lambda node=node: _is_ready(node), within, "a node is ready")  # type: ignore[misc]

    def complaints(self) -> list[str]:
        return [line for node in self.nodes for line in node.complaints()]


async def _page(http: httpx.AsyncClient, channel: str, since: str) -> dict[str, Any]:
    """One page of a channel; asked for again while the store is away."""
    async with asyncio.timeout(30):
        while True:
            answer = await http.get("/v1/history", params={"channel": channel, "since": since, "limit": PAGE})
            if answer.status_code != 503:
                page: dict[str, Any] = answer.raise_for_status().json()
                return page
            await asyncio.sleep(0.2)


def _position(http: httpx.Client, channel: str) -> int:
    """Where a node has whoever comes begin."""
    answer = http.get("/v1/poll", params={"channels": channel}).raise_for_status()
    cursor = answer.headers["Ringcast-Cursor"] if answer.status_code == 204 else answer.json()["cursor"]
    return decode_cursor(cursor)[channel]


def _revive(node: Gateway) -> None:
    node.signal(signal.SIGCONT)
    if node.process.poll() is not None:
        node.start()


def _is_ready(node: Gateway) -> bool:
    with node.http() as http:
        try:
            return http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


def _keep(report: Report) -> None:
    """Append it to the file that RINGCAST_CHAOS_REPORT names, a line of JSON each."""
    if path := os.environ.get("RINGCAST_CHAOS_REPORT"):
        with open(path, "a") as file:
            file.write(json.dumps(asdict(report)) + "\n")


def _spread(delays: list[float]) -> list[float]:
    if len(delays) < 2:
        return []
    hundredths = statistics.quantiles(delays, n=100)
    return [round(1000 * value, 1) for value in (statistics.median(delays), hundredths[98], max(delays))]


@asynccontextmanager
async def fleet(store: str, brokers: Sequence[str], processes: int = 1, **settings: Any) -> AsyncIterator[Fleet]:
    """Three nodes that are ready, and their clients' processes."""
    async with crowd(processes) as people:
        found = Fleet(store, brokers, people, **settings)
        try:
            await found.each(Gateway.start)
            async with found.proxy:
                yield found
        finally:
            await found.each(Gateway.close)
