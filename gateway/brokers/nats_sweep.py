"""Ending keys whose time is over: the home node publishes their deletion, guarded by the value it ends.

NATS could let messages expire by itself, but then nobody would be told, and an older value would come to light.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from gateway.brokers import nats_format
from gateway.brokers.base import Unreadable
from gateway.brokers.nats_api import WRONG_LAST_SEQUENCE, Api, ApiError, Stored
from gateway.brokers.nats_lines import GUARD, Line, Lines
from gateway.brokers.nats_link import Away
from gateway.brokers.nats_reader import Reader
from gateway.brokers.nats_writer import Writer
from gateway.message import Draft, new_id

BATCH = 500
BATCH_BYTES = 4 << 20
IDLE = 5000  # milliseconds between two looks at a stream of which no key ends before
RETRY = 2000  # milliseconds after which a key that is still there is looked at again
NEVER = 1 << 62


@dataclass(slots=True)
class Key:
    expires: int  # milliseconds since 1970
    seq: int  # of the value
    due: int  # when `Table.due` brings it up


@dataclass(slots=True)
class Table:
    """When the keys of one stream expire, as far as the stream was read."""

    created: str
    read: int
    keys: dict[str, Key] = field(default_factory=dict)  # by subject
    due: list[tuple[int, str]] = field(default_factory=list)
    look_at: int = 0

    def note(self, value: Stored) -> None:
        try:
            meta, _ = nats_format.decode(value.data)
        except Unreadable:  # a newer release's, whose nodes end it
            meta = None
        if meta is None or meta.ttl is None or meta.deleted:
            self.keys.pop(value.subject, None)
            return
        expires = nats_format.milliseconds(value.time) + meta.ttl
        key = self.keys.get(value.subject)
        if key is None:
            key = self.keys[value.subject] = Key(expires, value.seq, NEVER)
        key.expires, key.seq = expires, value.seq
        if expires < key.due:  # otherwise it comes up too early, and is put back then
            key.due = expires
            heapq.heappush(self.due, (expires, value.subject))

    def over(self, now: int) -> tuple[str, Key] | None:
        """A key whose time is over; it is brought up again a little later, should it still be there."""
        while self.due and self.due[0][0] <= now:
            due, subject = heapq.heappop(self.due)
            key = self.keys.get(subject)
            if key is None or key.due != due:
                continue
            key.due = max(key.expires, now + RETRY)
            heapq.heappush(self.due, (key.due, subject))
            if key.expires <= now:
                return subject, key
        return None


class Sweep:
    def __init__(self, lines: Lines, reader: Reader, writer: Writer) -> None:
        self.lines = lines
        self.reader = reader
        self.writer = writer
        self._tables: dict[int, Table] = {}

    async def sweep(self, api: Api, numbers: Collection[int]) -> None:
        """Publish the deletion of each key of these streams whose time is over; forget all other streams.

        A stream without keys that end soon is looked at only now and then.
        """
        for number in self._tables.keys() - set(numbers):
            del self._tables[number]
        for number in numbers:
            now = time.time_ns() // 1_000_000
            table = self._tables.get(number)
            if table is not None and now < table.look_at:
                continue
            line = self.lines[number]
            table = await self._read_on(api, line)
            while (found := table.over(now)) is not None:
                await self._end(api, line, *found)
            table.look_at = min(now + IDLE, table.due[0][0] if table.due else NEVER)

    async def _read_on(self, api: Api, line: Line) -> Table:
        table = self._tables.get(line.number)
        end = await self.lines.look(api, line)
        if table is None or table.created != line.created or table.read > end:
            subjects = await self.reader.subjects(api, line)
            values, read = await self.reader.newest(api, line, subjects)
            if subjects and not read:
                raise Away("a copy is behind")
            table = self._tables[line.number] = Table(line.created, read or end)
            for value in values:
                table.note(value)
        pattern = self.lines.names.messages(line.number)
        while table.read < end:
            batch = await api.batch(line.stream, pattern, table.read + 1, BATCH, BATCH_BYTES)
            if not batch:
                break
            for value in batch:
                table.note(value)
            table.read = batch[-1].seq
        return table

    async def _end(self, api: Api, line: Line, subject: str, key: Key) -> None:
        value = await api.last(line.stream, subject)
        if value is None or value.seq != key.seq:
            return  # it was replaced: its new value, which is still to be read, has its own time
        await self.writer.ready(api, line)
        meta, _ = nats_format.decode(value.data)
        draft = Draft(meta.channel, "expired", b"null", new_id(), meta.key, meta.version, deleted=True)
        payload = nats_format.encode(draft, line.lineage.history, time.time_ns() // 1_000_000, None)
        id = f"expired {line.created} {key.seq}"
        try:
            await api.publish(subject, payload, {GUARD: str(key.seq), "Nats-Msg-Id": id})
        except ApiError as error:
            if error.code not in WRONG_LAST_SEQUENCE:
                raise
