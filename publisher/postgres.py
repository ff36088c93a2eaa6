"""`ringcast relay postgres`: publishes what waits in the outbox, with any number of its kind beside it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg

from publisher.delivery import Delivery, Fault, Sent
from publisher.errors import Refused
from publisher.outbox import Lane, Outbox, Row
from publisher.relay import Backoff, Progress, log

MAX_LANES = 16  # of 64 at a time: the others are for other relays
MAX_BYTES = 512 << 10  # of data in one batch: below what proxies let through by default, and all that a relay holds
SKEW = 60.0  # seconds that the clocks of PostgreSQL and of the gateway's store may differ


@dataclass(frozen=True, slots=True)
class Options:
    batch: int = 500  # rows at a time
    streams: int = 4  # requests at a time, each with lanes of its own
    poll: float = 1.0  # seconds after which it looks without being notified
    report: float = 30.0  # seconds between two log lines
    window: float = 300.0  # seconds: the gateway's idempotency window


class PostgresRelay:
    """Reads batches, publishes them, records the answers; `run` ends after `stop`, with the batch at hand finished.

    What it promises: a row of a committed transaction is published at least once under one id, and the gateway stores
    it once. The rows of a channel are published in the order of their numbers: those of one transaction as it wrote
    them, and those of a transaction that began to publish after another's commit behind that one's. A row that the
    gateway refuses for good is set aside and the channel goes on without it.
    """

    def __init__(self, conninfo: str, delivery: Delivery, options: Options = Options()) -> None:
        self.progress = Progress()
        self._conninfo = conninfo
        self._delivery = delivery
        self._options = options
        self._stop = asyncio.Event()
        self._postgres = Backoff("PostgreSQL", self._stop)
        self._gateway = Backoff("the gateway", self._stop)
        self._size = options.batch  # rows of the next batch; fewer after a failure: a slow gateway gets some through
        self._reported = 0.0

    def stop(self) -> None:
        self._stop.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Calls `ready` once connected. Raises psycopg.Error where that shows a mistake which no waiting mends."""
        began = False
        while not self._stop.is_set():
            try:
                outbox = await Outbox.connect(self._conninfo, self._options.window)
                try:
                    if not began:
                        began = True
                        ready()
                    await self._relay(outbox)
                finally:
                    await outbox.close()
            except psycopg.Error as error:
                if not began and not isinstance(error, psycopg.OperationalError):
                    raise
                self.progress.faults["source"] += 1
                await self._postgres.failed(_sentence(error))

    async def _relay(self, outbox: Outbox) -> None:
        while not self._stop.is_set():
            await self._report(outbox)
            lanes = await outbox.claim(min(MAX_LANES, self._size))
            if not lanes:
                self._postgres.worked()
                await outbox.wait(self._options.poll, self._stop)
                continue
            before = self.progress.delivered
            fault = await self._batch(outbox, lanes)
            moved = self.progress.delivered > before
            await outbox.release(lanes)
            self._postgres.worked()
            if fault is None:
                self._gateway.worked()
                self._size = min(self._options.batch, self._size * 2)
            else:
                self.progress.faults["gateway"] += 1
                self._size = self._size if moved else max(1, self._size // 4)
                await self._gateway.failed(str(fault), fault.retry_after, progress=moved)

    async def _batch(self, outbox: Outbox, claimed: Sequence[int]) -> Fault | None:
        """Publish what these lanes begin with, and record the answers; returns why some of it has to wait."""
        lanes = await outbox.read(claimed, self._size, MAX_BYTES)
        groups = [group for n in range(self._options.streams) if (group := lanes[n :: self._options.streams])]
        fault: Fault | None = None
        for told in await asyncio.gather(*(self._publish(group) for group in groups)):
            await self._settle(outbox, told)
            fault = fault or told.fault
        return fault

    async def _publish(self, lanes: Sequence[Lane]) -> _Told:
        told = _Told(lanes)
        try:
            for lane in lanes:
                if lane.doubt is not None and lane.doubt.stale:
                    told.done |= await self._stored(lane, lane.doubt.since, lane.doubt.through)
        except Fault as fault:
            told.fault = fault
            return told
        rows = [row for lane in lanes for row in lane.rows if row not in told.done]
        told.add(rows, await self._delivery.send([row.entry() for row in rows]))
        self.progress.acknowledge(told.acknowledged, told.duplicates)
        return told

    async def _stored(self, lane: Lane, since: float, through: int) -> set[Row]:
        """The rows that their channels' logs hold, of those that were sent so long ago that their ids are forgotten."""
        doubtful: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in lane.rows:
            if row.id <= through:
                doubtful[row.channel][row.message_id] = row
        found: set[Row] = set()
        for channel, rows in doubtful.items():
            found |= {rows[id] for id in await self._delivery.stored(channel, rows.keys(), since - SKEW)}
        self.progress.found += len(found)
        count = sum(map(len, doubtful.values()))
        log.warning("lane %d: %d rows were sent up to %.0f s ago and never answered; %d of them are in their channels' "
                    "logs, the others are sent again", lane.number, count, time.time() - since, len(found))  # fmt: skip
        return found

    async def _settle(self, outbox: Outbox, told: _Told) -> None:
        for row, why in told.refused.items():
            self.progress.refused[why.code] += 1
            log.error("row %d of %s is set aside, refused (%s): %s", row.id, ascii(row.channel), why.code, why.detail)
        await outbox.settle(told.done, told.refused, told.certain())

    async def _report(self, outbox: Outbox) -> None:
        now = time.monotonic()
        if now < self._reported:
            return
        self._reported = now + self._options.report
        backlog = await outbox.backlog()
        progress = self.progress
        progress.waiting, progress.oldest = backlog.rows, backlog.oldest
        log.info("delivered %d (%d of them stored before, %d found in the log), refused %d, waiting %d, oldest %.1f s, "
                 "set aside %d", progress.delivered, progress.duplicates, progress.found, progress.refused.total(),
                 backlog.rows, backlog.oldest, backlog.refused)  # fmt: skip


class _Told:
    """What is known of some lanes' rows after a try."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self.done: set[Row] = set()
        self.refused: dict[Row, Refused] = {}
        self.acknowledged = 0
        self.duplicates = 0
        self.fault: Fault | None = None

    def add(self, rows: Sequence[Row], sent: Sent) -> None:
        self.done |= {rows[number] for number in sent.acknowledged}
        self.refused = {rows[number]: why for number, why in sent.refused.items()}
        self.acknowledged, self.duplicates, self.fault = len(sent.acknowledged), sent.duplicates, sent.fault

    def certain(self) -> list[int]:
        """The lanes of which nothing is in doubt."""
        return [lane.number for lane in self._lanes
                if lane.certain and all(row in self.done or row in self.refused for row in lane.rows)]  # fmt: skip


def _sentence(error: psycopg.Error) -> str:
    """Its first line; libpq's text names hosts and users, never a password."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
