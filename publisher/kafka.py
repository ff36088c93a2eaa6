"""`ringcast relay kafka`: publishes the records of topics, as one of any number of members of a consumer group.

A partition has one member at a time, which sends its records in their order and commits behind what was acknowledged. A
member that was taken for dead while it still sends does no harm: see `publisher.delivery`.

At most one batch of a partition is on its way, so of what a partition begins with when it is assigned, only so many
records may be stored already. Those of them that are older than the gateway remembers ids are looked up in the
channels' logs before they are sent.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiokafka  # type: ignore[import-untyped]  # it has no types
from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from publisher.delivery import Delivery, Fault, trusted
from publisher.errors import InvalidMessage, Refused
from publisher.message import Entry
from publisher.records import Prepared, Record, prepared
from publisher.relay import Backoff, Progress, log

MAX_BATCH = 500  # records of a partition that are on their way at a time
MAX_BYTES = 512 << 10  # of one request: below what proxies let through by default
SKEW = 60.0  # seconds that the clocks of Kafka, its producers and the gateway's store may differ
LOOK = 500  # milliseconds that one look for records takes at most
WITHIN = 10.0  # seconds for a commit

Place = tuple[str, int, int]  # topic, partition, offset
Partition = Any  # aiokafka.TopicPartition, which has no types


@dataclass(frozen=True, slots=True)
class Options:
    topics: Sequence[str]
    group: str = "ringcast"
    channel: str | None = None  # where to, as `publisher.records.prepared` reads it
    event: str = "message"
    batch: int = MAX_BATCH  # records at a time
    streams: int = 4  # requests at a time, each with partitions of its own
    session: float = 10.0  # seconds without a heartbeat after which another member takes over
    report: float = 30.0  # seconds between two log lines
    window: float = 300.0  # seconds: the gateway's idempotency window


@dataclass(frozen=True, slots=True)
class Brokers:
    """Where Kafka is, and how to log in."""

    servers: str
    security: str = "PLAINTEXT"
    ca: str | None = None  # a file; the system's own certificates by default
    mechanism: str = "PLAIN"
    user: str | None = None
    password: str | None = None


@dataclass(slots=True)
class _Doubt:
    """What of a partition may be stored already."""

    left: int = MAX_BATCH  # so many records from the beginning: another member may have sent them
    through: int = -1  # up to this offset: this member did

    def of(self, records: Sequence[Record]) -> list[Record]:
        return [record for n, record in enumerate(records) if n < self.left or record.offset <= self.through]


class KafkaRelay:
    """Reads batches, publishes them, commits; `run` ends after `stop`, with what is on its way finished.

    A record that the gateway refuses for good is logged with its place and passed over; it stays in Kafka.
    """

    def __init__(self, brokers: Brokers, delivery: Delivery, options: Options) -> None:
        self.progress = Progress()
        self._brokers = brokers
        self._delivery = delivery
        self._options = options
        self._stop = asyncio.Event()
        self._kafka = Backoff("Kafka", self._stop)
        self._gateway = Backoff("the gateway", self._stop)
        self._size = options.batch
        self._reported = 0.0
        self._doubts: dict[Partition, _Doubt] = {}
        self._batch = asyncio.Lock()  # held from the first record that is sent until what became of it is committed

    def stop(self) -> None:
        self._stop.set()

    async def run(self, ready: Callable[[], None]) -> None:
        began = False
        while not self._stop.is_set():
            consumer = self._consumer()
            try:
                try:
                    await consumer.start()
                    consumer.subscribe(self._options.topics, listener=_Listener(self._doubts, self._batch))
                    if not began:
                        began = True
                        ready()
                    await self._relay(consumer)
                finally:
                    async with asyncio.timeout(WITHIN):
                        await consumer.stop()
            except (KafkaError, TimeoutError) as error:
                self.progress.faults["source"] += 1
                await self._kafka.failed(str(error) or type(error).__name__)

    def _consumer(self) -> Any:
        brokers, session = self._brokers, int(self._options.session * 1000)
        return aiokafka.AIOKafkaConsumer(
            bootstrap_servers=brokers.servers, group_id=self._options.group, client_id="ringcast-relay",
            enable_auto_commit=False, auto_offset_reset="none", isolation_level="read_committed",
            session_timeout_ms=session, heartbeat_interval_ms=session // 3, rebalance_timeout_ms=60_000,
            max_partition_fetch_bytes=1 << 20, fetch_max_bytes=4 << 20, security_protocol=brokers.security,
            ssl_context=ssl.create_default_context(cafile=brokers.ca) if "SSL" in brokers.security.split("_") else None,
            sasl_mechanism=brokers.mechanism, sasl_plain_username=brokers.user, sasl_plain_password=brokers.password,
        )  # fmt: skip

    async def _relay(self, consumer: Any) -> None:
        while not self._stop.is_set():
            self._report(consumer)
            try:
                found = await consumer.getmany(timeout_ms=LOOK, max_records=self._size)
            except NoOffsetForPartitionError as error:
                await consumer.seek_to_beginning(*error.args)  # a group that is new to the partition
                continue
            except OffsetOutOfRangeError as error:
                for partition, offset in error.args[0].items():
                    log.error("%s: what came from offset %d on has left the topic before it was relayed; going on with "
                              "the oldest record that is there", _name(partition), offset)  # fmt: skip
                await consumer.seek_to_beginning(*error.args[0])
                continue
            first = min((records[0].timestamp / 1000 for records in found.values()), default=time.time())
            self.progress.oldest = max(0.0, time.time() - first)
            fault: Fault | None = None
            before = self.progress.delivered
            async with self._batch:
                owned = {p: records for p, records in found.items() if p in consumer.assignment()}
                for partition in owned:
                    self._doubts.setdefault(partition, _Doubt())
                if owned:
                    fault = await self._publish_all(consumer, owned)
            self._kafka.worked()
            if fault is not None:
                self.progress.faults["gateway"] += 1
                moved = self.progress.delivered > before
                self._size = self._size if moved else max(1, self._size // 4)
                await self._gateway.failed(str(fault), fault.retry_after, progress=moved)
            elif owned:
                self._gateway.worked()
                self._size = min(self._options.batch, self._size * 2)

    async def _publish_all(self, consumer: Any, found: Mapping[Partition, Sequence[Record]]) -> Fault | None:
        """Publish, commit behind what is done, go back to what is not; returns why some of it has to wait."""
        partitions = list(found)
        groups = [group for n in range(self._options.streams) if (group := partitions[n :: self._options.streams])]
        faults: list[Fault] = []
        reached: dict[Partition, int] = {}
        for fault, done in await asyncio.gather(*(self._publish(found, group) for group in groups)):
            faults += [fault] if fault is not None else []
            reached |= done
        for partition, position in reached.items():
            last = found[partition][-1].offset + 1
            self._doubts[partition].through = max(self._doubts[partition].through, last - 1)
            if position < last:
                consumer.seek(partition, position)
        moved = {p: position for p, position in reached.items() if position > found[p][0].offset}
        if moved:
            async with asyncio.timeout(WITHIN):
                await consumer.commit(moved)
        return faults[0] if faults else None

    async def _publish(
        self, found: Mapping[Partition, Sequence[Record]], group: Sequence[Partition]
    ) -> tuple[Fault | None, dict[Partition, int]]:
        """Returns why some of it has to wait, and for each partition the offset behind what is done."""
        records = [record for partition in group for record in found[partition]]
        done: set[Place] = set()
        waiting: list[tuple[Record, Prepared]] = []
        for record in records:
            try:
                waiting.append((record, prepared(record, self._options.channel, self._options.event)))
            except InvalidMessage as error:
                self._refuse(record, Refused("invalid", 400, str(error)))
                done.add(_place(record))
        doubtful = {_place(record) for partition in group for record in self._doubts[partition].of(found[partition])}
        fault: Fault | None = None
        try:
            done |= await self._stored([each for each in waiting if _place(each[0]) in doubtful])
        except Fault as failed:
            fault = failed
        for chunk in _chunks([(record, what.entry) for record, what in waiting if _place(record) not in done]):
            if fault is not None or self._stop.is_set():
                break
            sent = await self._delivery.send([entry for _, entry in chunk])
            for number, why in sent.refused.items():
                self._refuse(chunk[number][0], why)
            self.progress.acknowledge(len(sent.acknowledged), sent.duplicates)
            done.update(_place(chunk[number][0]) for number in sent.acknowledged | sent.refused.keys())
            fault = sent.fault
        reached: dict[Partition, int] = {}
        for partition in group:
            left = [record for record in found[partition] if _place(record) not in done]
            reached[partition] = left[0].offset if left else found[partition][-1].offset + 1
            passed = sum(record.offset < reached[partition] for record in found[partition])
            self._doubts[partition].left = max(0, self._doubts[partition].left - passed)
        return fault, reached

    async def _stored(self, doubtful: Sequence[tuple[Record, Prepared]]) -> set[Place]:
        """The records that their channels' logs hold, of those whose ids may be forgotten by now. Raises Fault."""
        now = time.time()
        by_channel: dict[str, dict[str, Record]] = defaultdict(dict)
        for record, message in doubtful:
            # It was sent after it was written. A time that lies ahead is no clock's, and says nothing.
            if not -SKEW < now - record.timestamp / 1000 < trusted(self._options.window) - SKEW:
                by_channel[message.channel][message.entry.id] = record
        found: set[Place] = set()
        for channel, records in by_channel.items():
            since = max(0.0, min(min(record.timestamp for record in records.values()) / 1000, now) - SKEW)
            found |= {_place(records[id]) for id in await self._delivery.stored(channel, records.keys(), since)}
        if by_channel:
            self.progress.found += len(found)
            count = sum(map(len, by_channel.values()))
            log.warning("%d records are older than the gateway remembers ids, and may have been sent before; %d of "
                        "them are in their channels' logs, the others are sent", count, len(found))  # fmt: skip
        return found

    def _refuse(self, record: Record, why: Refused) -> None:
        self.progress.refused[why.code] += 1
        log.error("record %s:%d:%d is passed over, refused (%s): %s", record.topic, record.partition, record.offset,
                  why.code, why.detail)  # fmt: skip

    def _report(self, consumer: Any) -> None:
        now = time.monotonic()
        if now < self._reported:
            return
        self._reported = now + self._options.report
        progress, assigned = self.progress, consumer.assignment()
        progress.waiting = sum(max(0, (consumer.highwater(p) or 0) - (self._doubts[p].through + 1)) for p in assigned
                               if p in self._doubts and self._doubts[p].through >= 0)  # fmt: skip
        log.info("delivered %d (%d of them stored before, %d found in the log), refused %d, waiting %d, partitions %d",
                 progress.delivered, progress.duplicates, progress.found, progress.refused.total(), progress.waiting,
                 len(assigned))  # fmt: skip


class _Listener(aiokafka.ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Lets a batch end before its partitions go to another member, and begins with doubts about new ones."""

    def __init__(self, doubts: dict[Partition, _Doubt], batch: asyncio.Lock) -> None:
        self._doubts = doubts
        self._batch = batch

    async def on_partitions_revoked(self, revoked: Sequence[Partition]) -> None:
        async with self._batch:
            for partition in revoked:
                self._doubts.pop(partition, None)

    async def on_partitions_assigned(self, assigned: Sequence[Partition]) -> None:
        for partition in assigned:
            self._doubts[partition] = _Doubt()


def _chunks(messages: Sequence[tuple[Record, Entry]]) -> Iterator[list[tuple[Record, Entry]]]:
    """Runs of them that fit into one request."""
    chunk: list[tuple[Record, Entry]] = []
    size = 0
    for record, entry in messages:
        if chunk and size + len(entry.body) > MAX_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append((record, entry))
        size += len(entry.body)
    if chunk:
        yield chunk


def _place(record: Record) -> Place:
    return record.topic, record.partition, record.offset


def _name(partition: Partition) -> str:
    return f"{partition.topic}:{partition.partition}"
