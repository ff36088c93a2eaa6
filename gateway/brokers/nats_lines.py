"""What this node knows of each stream, the take-over records it writes, and the check of the one rule."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.brokers import nats_lineage
from gateway.brokers.base import Counts, Unreadable
from gateway.brokers.chain import Claim
from gateway.brokers.nats_api import STREAM_NOT_FOUND, WRONG_LAST_SEQUENCE, Api, ApiError, Info, Stored
from gateway.brokers.nats_lineage import Lineage
from gateway.brokers.nats_link import Away, Link
from gateway.brokers.nats_names import Names
from gateway.brokers.nats_streams import SECOND, Streams

log = logging.getLogger("ringcast.nats")

UNREAD = -1
ATTEMPTS = 20  # to meet a stream whose records stay as they are while it is looked at
DESCRIBED = "ringcast.record"
GUARD = "Nats-Expected-Last-Subject-Sequence"
GUARD_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"

Claims = Iterable[Claim]


@dataclass(slots=True)
class Line:
    """One stream as this node knows it."""

    number: int
    stream: str
    lineage: Lineage
    created: str
    records: int = UNREAD  # how many records it held when the last was read
    doubts: int = 0  # how often there was a reason to read them again
    clear: int = 0  # no record up to this sequence is unknown here
    guard: int = 0  # the sequence of the record that the stream itself holds, 0 for none
    kept: bool = False  # the last record is in the stream's description
    ready: Link | None = None  # whose process the stream has a record of, so that it may be published to
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # of what is written about it
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)  # one question about what was told at a time
    ends: deque[tuple[float, int]] = field(default_factory=deque)  # where the stream ended, and when that was asked

    def doubt(self) -> None:
        """A record was written, or something else does not fit: read the records again before the next answer."""
        self.records = UNREAD
        self.doubts += 1

    def ended(self, at: float, seq: int, age: float) -> None:
        """Remember that at that moment (monotonic) nothing above `seq` had been stored yet."""
        if not self.ends or at - self.ends[-1][0] >= age / 32:
            self.ends.append((at, seq))
        while at - self.ends[0][0] > age:
            self.ends.popleft()

    def seen_since(self, seq: int, age: float) -> bool:
        """Whether all above `seq` is known to be younger than `age` seconds, whatever other subjects still hold."""
        now = time.monotonic()
        return any(end <= seq and now - at < age for at, end in self.ends)


class Lines:
    def __init__(self, names: Names, streams: Streams) -> None:
        self.names = names
        self.streams = streams
        self.lines: dict[int, Line] = {}
        self.counts = Counts()

    def __getitem__(self, number: int) -> Line:
        line = self.lines.get(number)
        if line is None:
            raise Away("the streams have not been looked at yet")
        return line

    async def open(self, api: Api, number: int, above: int) -> None:
        """Find the stream, or make it, beginning above `above`; read how it became what it is. Raises ConfigError."""
        info = await self.streams.open(api, number, above)
        line = self.lines.get(number)
        if line is None:
            lineage = Lineage.new(info.created, info.config.first_seq)
            line = self.lines[number] = Line(number, self.names.stream(number), lineage, info.created)
        line.doubt()
        line.ready, line.clear = None, 0
        await self.look(api, line)
        if line.lineage.keyed not in (None, self.streams.keyed) and number not in self.streams.settled:
            log.warning("%s: other namespaces are keyed now; older positions there are reset", line.stream)
            async with line.lock:
                await self._take_over(api, line, [], lost=True)
        self.streams.settled.add(number)

    def doubt(self, number: int) -> None:
        """See Line.doubt."""
        if number in self.lines:
            self.lines[number].doubt()

    def unready(self, number: int) -> None:
        """The stream did not take a message: see that it is there before the next."""
        if number in self.lines:
            self.lines[number].ready = None

    async def look(self, api: Api, line: Line) -> int:
        """The stream's last sequence, with the lineage as of then. One request, unless a record is new.

        A record that is announced between question and answer may not be in the answer: what was found then is not
        taken for the last, nor put in the place of what was announced.
        """
        record = self.names.record(line.number)
        for _ in range(ATTEMPTS):
            asked, doubts = time.monotonic(), line.doubts
            info = await api.info(line.stream, record)
            line.ended(asked, info.state.last_seq, info.config.max_age / SECOND)
            count = info.state.subjects.get(record, 0)
            if count != line.records or count >= info.config.max_msgs_per_subject or info.created != line.created:
                found = await api.last(line.stream, record)
                if line.doubts != doubts:
                    continue
                self._read(line, info, found)
                if info.created != line.created:
                    line.clear = 0
                line.records, line.created = count, info.created
            if line.guard <= info.state.last_seq:
                line.clear = max(line.clear, info.state.last_seq)
                return info.state.last_seq
            line.records = UNREAD  # its newest record came after what was said of its end
        raise Away("the stream does not come to rest")

    def _read(self, line: Line, info: Info, found: Stored | None) -> None:
        try:
            self._read_records(line, info, found)
        except Unreadable as error:
            log.error("%s cannot be used: upgrade this node (%s)", line.stream, error)
            raise Away("a newer release serves this stream, and this node has to be upgraded") from error

    def _read_records(self, line: Line, info: Info, found: Stored | None) -> None:
        described = info.config.metadata.get(DESCRIBED)
        kept = nats_lineage.decode_kept(described) if described else None
        if found is not None:
            line.lineage = Lineage.of(nats_lineage.decode(found.data), found.seq)
        elif kept is not None:
            line.lineage = Lineage.of(kept.record, kept.seq)
        else:
            line.lineage = Lineage.new(info.created, info.config.first_seq)
        if line.number in self.streams.settled and line.lineage.keyed not in (None, self.streams.keyed):
            log.error("%s: a node was started with other keyed namespaces (%s), whose channels lie elsewhere: this node"
                      " cannot serve until it is given the same settings", line.stream, line.lineage.keyed)  # fmt: skip
            raise Away("other namespaces are keyed now: give this node the same settings, and start it anew")
        line.guard = found.seq if found is not None else 0
        line.kept = line.guard in (0, kept.seq if kept is not None else -1)

    async def check(self, api: Api, number: int, claims: Claims) -> tuple[int, str]:
        """Compare with what this node knows of; answer the highest offset and its history.

        Where something of it is gone the stream gets a record which says so: every chain breaks there, and every read
        of what was before it is answered with a reset.
        """
        line = self[number]
        told = list(claims)
        for _ in range(ATTEMPTS):
            try:
                last = await self.look(api, line)
            except ApiError as error:
                if error.code != STREAM_NOT_FOUND:
                    raise
                await self.open(api, number, max((claim.offset for claim in told), default=0))
                continue
            top = line.lineage.offset(last)
            if not any(line.lineage.lost(claim.offset, claim.history, top) for claim in told):
                return top, line.lineage.history
            async with line.lock:
                last = await self.look(api, line)
                top = line.lineage.offset(last)
                if any(line.lineage.lost(claim.offset, claim.history, top) for claim in told):
                    log.warning("%s has lost messages: positions before now are reset", line.stream)
                    self.counts.losses += 1
                    await self._take_over(api, line, [claim.offset for claim in told], lost=True)
        raise Away("the stream does not come to rest")

    async def ready(self, api: Api, line: Line) -> None:
        """Have the stream know the server process, before this node's first publish to it there."""
        async with line.lock:
            while api.link.process not in line.lineage.processes:
                await self._take_over(api, line, [], lost=False)
            if not line.kept:
                await self._describe(api, line)
            line.ready = api.link

    async def _describe(self, api: Api, line: Line) -> None:
        found = await api.last(line.stream, self.names.record(line.number))
        if found is not None:
            kept = nats_lineage.Kept(found.seq, nats_lineage.decode(found.data))
            await api.describe(line.stream, DESCRIBED, nats_lineage.encode(kept).decode())
            line.kept = True

    async def _take_over(self, api: Api, line: Line, told: list[int], *, lost: bool) -> None:
        """Write a record, unless another node writes one first. The lineage is that of the stream afterwards."""
        names = self.names
        last = await self.look(api, line)
        first = await api.first(line.stream, names.messages(line.number))
        if not lost and api.link.process in line.lineage.processes:
            await self.look(api, line)  # another node was faster
            return
        base = max([time.time_ns() // 1000, line.lineage.offset(last) + 2, *(offset + 1 for offset in told)])
        history = secrets.token_hex(6)
        record = line.lineage.record(
            history, api.link.process, base, first.seq if first else last + 1, self.streams.keyed, lost=lost
        )
        headers = {"Nats-TTL": "never", "Nats-Msg-Id": history, GUARD: str(line.guard)}
        try:
            await api.publish(names.record(line.number), nats_lineage.encode(record), headers)
        except ApiError as error:
            if error.code not in WRONG_LAST_SEQUENCE:
                raise
        line.doubt()
        await self.look(api, line)
