"""Reading a stream: pages and what they prove, snapshots, and where a time lies.

Any server that holds a copy answers the large reads, from what it has so far; so the leader is asked first how far
there is to read, and with each of them what comes next, for a copy may let go of what has expired before the leader
does. What a page proves is asked after it: what the leader still held then had not gone before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence

from gateway.brokers import nats_format
from gateway.brokers.base import Page, Snapshot, Unreadable, unreadable
from gateway.brokers.nats_api import SUBJECTS_PAGE, TABLE_LIMIT, Api, Stored
from gateway.brokers.nats_lines import Line, Lines
from gateway.brokers.nats_link import Away
from gateway.brokers.nats_names import UNKEYED
from gateway.brokers.nats_streams import shortest_age, untrimmed_below
from gateway.message import Message
from gateway.settings import Settings

log = logging.getLogger("ringcast.nats")

BEHIND = 0.02  # seconds between two looks at a server whose copy is behind
LOOKS = 50
REQUEST_BYTES = 256 << 10  # of subjects named in one request


class Reader:
    def __init__(self, settings: Settings, lines: Lines) -> None:
        self.settings = settings
        self.lines = lines
        self.names = lines.names

    async def read(self, api: Api, channel: str, since: int, limit: int) -> tuple[Page, str]:
        """A page, and the history that its highest offset is of."""
        line = self.lines[self.names.number(channel)]
        while True:
            doubts = line.doubts
            found = await self._read(api, line, channel, since, limit)
            if line.doubts == doubts:  # else a record came meanwhile, and offsets may be others
                return found

    async def _read(self, api: Api, line: Line, channel: str, since: int, limit: int) -> tuple[Page, str]:
        end = await self.lines.look(api, line)
        lineage = line.lineage
        after, exists = lineage.place(since)
        stored, more = await self._after(api, line, channel, after, limit)
        if stored and stored[-1].seq > end:  # came meanwhile, and may lie behind a record that is not known here yet
            stored, more = [message for message in stored if message.seq <= end], False
        shown = exists and await self._shown(api, line, channel, after, end)
        messages = _messages(line, stored)
        shown = shown and len(messages) == len(stored)
        until = lineage.offset(stored[-1].seq) if more else 0
        return Page(since, shown, lineage.floor, lineage.offset(end), messages, more, until), lineage.history

    # ---------------------------------------------------------------- pages

    async def _after(self, api: Api, line: Line, channel: str, after: int, limit: int) -> tuple[list[Stored], bool]:
        """At most `limit` messages above the sequence `after`, and whether there are more."""
        pattern = self.names.channel(line.number, channel)
        found, more = await self._range(api, line, pattern, after, limit)
        if self.lines.streams.policies.of(channel).slow != "latest" or not found:
            return found, more
        if not more:
            newest = {message.subject: message.seq for message in found}
            return [m for m in found if m.seq == newest[m.subject] or _unkeyed(m.subject)], False
        return await self._newest_after(api, line, channel, after, limit)

    async def _range(self, api: Api, line: Line, pattern: str, after: int, limit: int) -> tuple[list[Stored], bool]:
        """All messages of a pattern above `after` until the page is full or the leader's last is reached."""
        found: list[Stored] = []
        size, seq = 0, after
        for look in range(LOOKS):
            last = await api.last(line.stream, pattern)
            if last is None or last.seq <= seq:
                return found, False
            while seq < last.seq:
                if len(found) >= limit or size >= self.settings.page_bytes:
                    return found, True
                room = self.settings.page_bytes - size
                batch, held = await asyncio.gather(
                    api.batch(line.stream, pattern, seq + 1, limit - len(found), room),
                    api.first(line.stream, pattern, seq + 1),
                )
                if not batch or (held is not None and held.seq < batch[0].seq):
                    break  # that copy has not got it yet, or has let go of it before the leader did
                found += batch
                size += sum(len(message.data) for message in batch)
                seq = batch[-1].seq
            else:
                return found, False
            await asyncio.sleep(BEHIND * min(look, 10))
        raise Away("the copies are behind")

    async def _newest_after(
        self, api: Api, line: Line, channel: str, after: int, limit: int
    ) -> tuple[list[Stored], bool]:
        """The newest value of each key, and all that has no key, above `after`, as far as a page goes."""
        unkeyed = self.names.message(line.number, channel, None)
        plain, more = await self._range(api, line, unkeyed, after, limit)
        values, _ = await self._table(api, line, channel)
        keyed = [m for m in values if m.seq > after and not _unkeyed(m.subject)]
        if more:
            keyed = [m for m in keyed if m.seq <= plain[-1].seq]
        found = sorted([*plain, *keyed], key=lambda message: message.seq)
        size = 0
        for count, message in enumerate(found):
            if count >= limit or (count and size + len(message.data) > self.settings.page_bytes):
                return found[:count], True
            size += len(message.data)
        return found, more

    async def _shown(self, api: Api, line: Line, channel: str, after: int, end: int) -> bool:
        """Whether nothing that matters above the sequence `after` can have left the channel."""
        pattern = self.names.channel(line.number, channel)
        info, first = await asyncio.gather(
            api.info(line.stream, pattern), api.first(line.stream, self.names.messages(line.number))
        )
        if after < min(first.seq - 1 if first else end, end) and not line.seen_since(after, shortest_age(info.config)):
            return False  # what came next may have become too old, for all that can be told
        limit = untrimmed_below(info.config)
        latest = self.lines.streams.policies.of(channel).slow == "latest"
        full = [
            subject for subject, count in info.state.subjects.items()
            if count >= limit and (not latest or _unkeyed(subject))
        ]  # fmt: skip
        for subject in full:
            oldest = await api.first(line.stream, subject)
            if oldest is None or oldest.seq > after:
                return False
        return True

    # ---------------------------------------------------------------- tables

    async def snapshot(self, api: Api, channel: str) -> tuple[Snapshot, str]:
        """The key table, and the history that its position is of."""
        line = self.lines[self.names.number(channel)]
        values, seq = await self._table(api, line, channel)
        await self.lines.look(api, line)  # for they may lie behind a record that is not known here yet
        now = time.time() * 1000
        try:
            messages = [_message(line, value) for value in values if _lives(value, now)]
        except Unreadable as error:
            log.error("%s: this release cannot read its values: upgrade this node (%s)", channel, error)
            raise unreadable() from error
        return Snapshot(messages, line.lineage.offset(seq)), line.lineage.history_at(seq)

    async def _table(self, api: Api, line: Line, channel: str) -> tuple[list[Stored], int]:
        """The newest message of each key, in their order, and the sequence this is the state of."""
        pattern = self.names.channel(line.number, channel)
        for look in range(LOOKS):
            end = await self.lines.look(api, line)
            info = await api.info(line.stream, pattern)
            subjects = [subject for subject in info.state.subjects if not _unkeyed(subject)]
            if not subjects:
                return [], end
            if len(subjects) < TABLE_LIMIT:
                found, seq = await api.newest(line.stream, [pattern])
                found = [message for message in found if not _unkeyed(message.subject)]
            else:
                found, seq = await self.newest(api, line, subjects)
            if seq >= end:
                return sorted(found, key=lambda message: message.seq), seq
            await asyncio.sleep(BEHIND * min(look, 10))
        raise Away("the copies are behind")

    async def live_keys(self, api: Api, line: Line, channel: str, beside: str) -> int:
        """How many keys have a value, not counting the subject `beside`, which may have got one just now."""
        values, _ = await self._table(api, line, channel)
        return keys_of(value for value in values if value.subject != beside)

    async def newest(self, api: Api, line: Line, subjects: Sequence[str]) -> tuple[list[Stored], int]:
        """The newest message of each of these subjects, as of one sequence; 0 where a copy is behind."""
        found: list[Stored] = []
        up_to, rest = 0, list(subjects)
        while rest:
            count, size = 0, 0
            while count < min(len(rest), TABLE_LIMIT) and size < REQUEST_BYTES:
                size += len(rest[count])
                count += 1
            some, seq = await api.newest(line.stream, rest[:count], up_to)
            if seq < up_to or not seq:
                return [], 0
            found += some
            up_to, rest = seq, rest[count:]
        return found, up_to

    async def subjects(self, api: Api, line: Line) -> list[str]:
        """All keys of all channels of a stream, as subjects."""
        pattern, found = self.names.messages(line.number), list[str]()
        while True:
            info = await api.info(line.stream, pattern, len(found))
            found += info.state.subjects
            if len(info.state.subjects) < SUBJECTS_PAGE:
                return [subject for subject in found if not _unkeyed(subject)]

    # ---------------------------------------------------------------- times

    async def position_at(self, api: Api, channel: str, moment: int) -> int:
        line = self.lines[self.names.number(channel)]
        end = await self.lines.look(api, line)
        first = await api.since(line.stream, self.names.channel(line.number, channel), max(moment, 0))
        return line.lineage.offset(end if first is None else min(end, first.seq - 1))


def _unkeyed(subject: str) -> bool:
    return subject.endswith(f".{UNKEYED}")


def _message(line: Line, stored: Stored) -> Message:
    meta, data = nats_format.decode(stored.data)
    return meta.message(line.lineage.offset(stored.seq), data)


def _messages(line: Line, stored: Sequence[Stored]) -> list[Message]:
    """Those that this release can read."""
    found: list[Message] = []
    for each in stored:
        try:
            found.append(_message(line, each))
        except Unreadable as error:
            log.error("%s: readers are told that some is missing, for this release cannot read it: upgrade this node"
                      " (%s)", each.subject, error)  # fmt: skip
    return found


def _lives(stored: Stored, now: float) -> bool:
    meta, _ = nats_format.decode(stored.data)
    return not meta.deleted and (meta.ttl is None or nats_format.milliseconds(stored.time) + meta.ttl > now)


def keys_of(stored: Iterable[Stored]) -> int:
    """How many of these are values, not deletions."""
    return sum(not nats_format.decode(message.data)[0].deleted for message in stored)
