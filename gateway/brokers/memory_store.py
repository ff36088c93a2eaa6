"""What a memory store holds, and the one rule over it: plain calls, a clock handed in, no I/O."""

from __future__ import annotations

import heapq
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from gateway.brokers.base import Page, Receipt, Snapshot
from gateway.brokers.chain import Claim, Frame
from gateway.brokers.ids import Ids
from gateway.errors import Problem
from gateway.message import Draft, Message, new_id, partition_of
from gateway.settings import Policy, Settings

SECOND = 1_000_000  # offsets and times here are microseconds
TOMBSTONE = 24 * 3600 * SECOND  # a deletion is remembered for this long at least
TAKEOVERS = 8
LOG_BYTES, KEY_BYTES = 700, 300  # charged for a channel and for a key beside the messages they hold


class Entry(NamedTuple):
    message: Message
    prev: int  # the log's edge before it: nothing of the channel lies between


@dataclass(slots=True)
class Key:
    message: Message
    expires: int
    due: int  # when `expiring_keys` brings it up


@dataclass(slots=True)
class Log:
    """A channel: its log, its key table, and the edge, after which nothing that matters is missing from the two."""

    policy: Policy
    partition: int
    edge: int
    entries: deque[Entry] = field(default_factory=deque)
    bytes: int = 0
    keys: dict[str, Key] = field(default_factory=dict)
    live_keys: int = 0
    forgotten: int = 0  # the highest deletion that the key table no longer remembers
    scheduled: bool = False  # whether `expiring_logs` will bring it up


@dataclass(slots=True)
class Part:
    """A partition: below `floor` nothing can be proven, `top` is the highest offset issued.

    Every chain broke at `announced`, when it was `raised`: whoever had been told of less by then has been told of a
    loss. A floor that was raised for want of room breaks no chain.
    """

    floor: int
    top: int
    history: str
    announced: int
    raised: int  # 0 where that was by another process's clock
    takeovers: list[tuple[str, int]] = field(default_factory=list)


@dataclass(slots=True)
class State:
    """All that a store process holds, and that another one may find, in part, when it takes over."""

    began: int
    ids: Ids
    parts: dict[int, Part] = field(default_factory=dict)
    logs: dict[str, Log] = field(default_factory=dict)
    bytes: int = 0
    expiring_logs: list[tuple[int, str]] = field(default_factory=list)
    expiring_keys: list[tuple[int, str, str]] = field(default_factory=list)


class MemoryStore:
    def __init__(self, settings: Settings, clock: Callable[[], int] | None = None) -> None:
        """A store that begins now; `clock` gives microseconds since 1970."""
        self.settings = settings
        self.clock = clock or (lambda: time.time_ns() // 1000)
        self.listeners: list[Callable[[Frame], None]] = []
        self.begin()

    def begin(self) -> None:
        """Start anew, with nothing."""
        self.history = new_id()
        ids = Ids(int(self.settings.idempotency_window * SECOND), self.settings.idempotency_bytes)
        self.state = State(self.clock(), ids)

    # ---------------------------------------------------------------- partitions

    def partition(self, channel: str) -> int:
        log = self.state.logs.get(channel)
        return partition_of(channel, self.settings.partitions) if log is None else log.partition

    def part(self, partition: int) -> Part:
        """The partition, with a take-over noted when another store process wrote to it last."""
        part, began = self.state.parts.get(partition), self.state.began
        if part is None:
            part = self.state.parts[partition] = Part(began, began, self.history, began, began)
        elif part.history != self.history:
            part.takeovers = [*part.takeovers, (part.history, part.top)][-TAKEOVERS:]
            part.history, part.raised = self.history, 0
        return part

    def check(self, partition: int, claims: Iterable[Claim]) -> tuple[int, str]:
        """Compare with what a node knows of; answer the highest offset and the history it is written in.

        Where a claim is gone, floor and highest offset are raised above all of it: every node's chain breaks there, and
        every read from below is answered with a reset.
        """
        part = self.part(partition)
        gone = [claim.offset for claim in claims if self.lost(part, claim)]
        if gone:
            part.announced = part.floor = part.top = max(part.top + 1, max(gone) + 1, self.clock())
            part.raised = self.clock()
        return part.top, part.history

    def lost(self, part: Part, claim: Claim) -> bool:
        if claim.offset < part.announced and self.clock() - claim.age < part.raised:
            return False  # another witness was first, and has told of all that this one heard of
        if claim.history == part.history:
            return claim.offset > part.top
        ends = dict(part.takeovers)
        return claim.history not in ends or claim.offset > ends[claim.history]

    def next_offset(self, part: Part) -> int:
        """Time, so that no offset is ever issued twice, not even by a store that was wiped or restored."""
        return max(part.top + 1, self.clock())

    # ---------------------------------------------------------------- writing

    def publish(self, draft: Draft) -> Receipt:
        """Store and announce one message, in one step. Raises the problems that `Broker.publish` names."""
        if draft.idempotent:
            known = self.state.ids.find(draft, self.clock())
            if known is not None:
                return Receipt(draft.channel, known, draft.id, duplicate=True)
        log = self.state.logs.get(draft.channel) or self._new_log(draft.channel)
        if draft.key is not None:
            self._check_key(log, draft.key, draft)
        offset = self._store(log, draft)
        if draft.idempotent:
            self.state.ids.remember(draft, offset, self.clock())
        return Receipt(draft.channel, offset, draft.id)

    def _store(self, log: Log, draft: Draft) -> int:
        part = self.part(log.partition)
        before, part.top = part.top, self.next_offset(part)
        message = Message(
            draft.channel, part.top, draft.id, draft.event, draft.data, part.top // 1000,
            draft.key, draft.version, draft.deleted, draft.trace,
        )  # fmt: skip
        if draft.channel not in self.state.logs:
            self.state.logs[draft.channel] = log
            self.state.bytes += LOG_BYTES
        self._append(log, message)
        if message.key is not None:
            self._set_key(log, message.key, message, draft.ttl)
        if self.state.bytes > self.settings.store_bytes:
            self._relieve()
        self.announce(Frame(log.partition, before, part.history, message))
        return message.offset

    def announce(self, frame: Frame) -> None:
        for listener in self.listeners:
            listener(frame)

    def _new_log(self, channel: str) -> Log:
        partition, policy = self.partition(channel), self.settings.policy(channel)
        return Log(policy, partition, self.empty_edge(self.part(partition), policy))

    def empty_edge(self, part: Part, policy: Policy) -> int:
        """The edge of a channel that holds nothing: whatever it held is older than its retention."""
        return max(part.floor, min(part.top, self.clock() - int(policy.history_ttl * SECOND)))

    def _append(self, log: Log, message: Message) -> None:
        log.entries.append(Entry(message, log.edge))
        log.bytes += message.size
        self.state.bytes += message.size
        if message.key is None or log.policy.slow != "latest":
            log.edge = message.offset  # under "latest" a newer value makes up for an older one, so that breaks nothing
        self._trim(log, message.offset)
        if not log.scheduled:
            self._schedule(log, message.channel)

    def _trim(self, log: Log, now: int) -> None:
        policy, entries = log.policy, log.entries
        oldest = now - int(policy.history_ttl * SECOND)
        size, most = policy.history_size, policy.history_bytes
        while entries and (
            entries[0].message.offset < oldest or len(entries) > size or (log.bytes > most and len(entries) > 1)
        ):
            self._drop_first(log)

    def _drop_first(self, log: Log) -> None:
        dropped = log.entries.popleft().message.size
        log.bytes -= dropped
        self.state.bytes -= dropped

    def _schedule(self, log: Log, channel: str) -> None:
        if not log.scheduled:
            log.scheduled = True
            heapq.heappush(self.state.expiring_logs, (self._expires(log), channel))

    def _expires(self, log: Log) -> int:
        first = log.entries[0].message.offset if log.entries else max(log.edge, log.forgotten)
        return first + int(log.policy.history_ttl * SECOND) + 1

    def _drop_log(self, channel: str) -> None:
        del self.state.logs[channel]
        self.state.bytes -= LOG_BYTES

    def _relieve(self) -> None:
        """Past the store's bound, the entries that would expire first go first, then what is left of their channels."""
        heap = self.state.expiring_logs
        while self.state.bytes > self.settings.store_bytes and heap:
            due, channel = heapq.heappop(heap)
            log = self.state.logs[channel]
            if self._expires(log) > due:
                heapq.heappush(heap, (self._expires(log), channel))
            elif log.entries:
                self._drop_first(log)
                heapq.heappush(heap, (self._expires(log), channel))
            elif log.keys:
                log.scheduled = False  # until its last key has gone
            else:
                part = self.part(log.partition)  # its record goes before its time: nothing below can be proven
                part.floor = max(part.floor, log.edge, log.forgotten)
                self._drop_log(channel)

    def sweep(self, limit: int = 1_000_000) -> bool:
        """Free what has expired, and publish the deletion of each key whose time is over.

        Returns whether it stopped at `limit` channels or keys with more to do.
        """
        now, done = self.clock(), 0
        while self.state.expiring_logs and self.state.expiring_logs[0][0] <= now:
            if (done := done + 1) > limit:
                return True
            _, channel = heapq.heappop(self.state.expiring_logs)
            log = self.state.logs[channel]
            log.scheduled = False
            self._trim(log, now)
            if log.entries or (not log.keys and self._expires(log) > now):
                self._schedule(log, channel)
            elif not log.keys:
                self._drop_log(channel)
        while self.state.expiring_keys and self.state.expiring_keys[0][0] <= now:
            if (done := done + 1) > limit:
                return True
            due, channel, name = heapq.heappop(self.state.expiring_keys)
            log = self.state.logs[channel]
            key = log.keys.get(name)
            if key is not None and key.due == due:
                self._key_due(log, channel, name, key)
        return False

    # ---------------------------------------------------------------- keys

    def _check_key(self, log: Log, name: str, draft: Draft) -> None:
        key = log.keys.get(name)
        if not draft.deleted and (key is None or key.message.deleted):
            if log.live_keys >= log.policy.max_keys and not draft.channel.startswith("ringcast:"):
                detail = f"{draft.channel} has as many keys as it may ({log.live_keys}): delete some, or raise max_keys"
                raise Problem("too_many_keys", detail)
            if self.state.bytes - log.bytes >= self.settings.store_bytes:
                raise Problem("store_full", "the memory store is full of keys: raise store_bytes", retry_after=5)
        if key is None or draft.version is None or key.message.version is None:
            return
        if draft.version <= key.message.version:
            held = list(key.message.version)
            raise Problem(
                "stale_version",
                f"key {name!r} of {draft.channel} holds version {held}: only a higher one replaces it",
                current={"offset": key.message.offset, "version": held},
            )

    def _set_key(self, log: Log, name: str, message: Message, ttl: float | None) -> None:
        life = int((log.policy.key_ttl if ttl is None else ttl) * SECOND)
        expires = self.clock() + (max(TOMBSTONE, life) if message.deleted else life)
        key = log.keys.get(name)
        if key is None:
            key = log.keys[name] = Key(message, expires, expires)
            log.live_keys += not message.deleted
            self.state.bytes += KEY_BYTES + message.size
            heapq.heappush(self.state.expiring_keys, (expires, message.channel, name))
            if len(log.keys) - log.live_keys > log.policy.max_keys:
                deleted = (n for n, k in log.keys.items() if k.message.deleted)
                self._forget(log, min(deleted, key=lambda n: log.keys[n].message.offset))
            return
        log.live_keys += key.message.deleted - message.deleted
        self.state.bytes += message.size - key.message.size
        key.message, key.expires = message, expires
        if expires < key.due:  # otherwise the entry in the heap comes up first, and is put back then
            key.due = expires
            heapq.heappush(self.state.expiring_keys, (expires, message.channel, name))

    def _key_due(self, log: Log, channel: str, name: str, key: Key) -> None:
        if key.expires > key.due:
            key.due = key.expires
            heapq.heappush(self.state.expiring_keys, (key.due, channel, name))
        elif key.message.deleted:
            self._forget(log, name)
            if not log.keys and not log.entries:
                self._schedule(log, channel)
        else:
            key.due = 0  # its deletion puts it into the heap again
            old = key.message
            self._store(log, Draft(channel, "expired", b"null", new_id(), name, old.version, deleted=True))
            key.due = key.expires
            heapq.heappush(self.state.expiring_keys, (key.due, channel, name))

    def _forget(self, log: Log, name: str) -> None:
        message = log.keys.pop(name).message
        log.live_keys -= not message.deleted
        log.forgotten = max(log.forgotten, message.offset)
        self.state.bytes -= KEY_BYTES + message.size

    # ---------------------------------------------------------------- reading

    def read(self, channel: str, since: int, limit: int) -> Page:
        """One atomic view: at most `limit` messages and `page_bytes` bytes above `since`, and what is shown of it."""
        log = self.state.logs.get(channel) or self._new_log(channel)
        self._trim(log, self.clock())
        part = self.part(log.partition)
        first = bisect_right(log.entries, since, key=lambda entry: entry.message.offset)
        shown = self.shown(log, first, since)
        found: Iterable[Message] = (entry.message for entry in islice(log.entries, first, None))
        if log.policy.slow == "latest":
            found = self._newest(log, found, since)
        messages: list[Message] = []
        size = 0
        for message in found:
            if len(messages) >= limit or (messages and size + message.size > self.settings.page_bytes):
                return Page(since, shown, part.floor, part.top, messages, more=True)
            messages.append(message)
            size += message.size
        return Page(since, shown, part.floor, part.top, messages, more=False)

    def shown(self, log: Log, first: int, since: int) -> bool:
        """Whether nothing that matters after `since` can be gone; `first` is the index of the entry after it."""
        if first > 0:
            return True
        edge = log.entries[0].prev if log.entries else log.edge
        return edge <= since and (log.policy.slow != "latest" or log.forgotten <= since)

    def _newest(self, log: Log, found: Iterable[Message], since: int) -> list[Message]:
        unkeyed: list[Message] = []
        newest: dict[str, Message] = {}
        for message in found:
            if message.key is None:
                unkeyed.append(message)
            else:
                newest[message.key] = message
        for name, key in log.keys.items():
            if key.message.offset > since:
                newest[name] = key.message
        return sorted([*unkeyed, *newest.values()], key=lambda message: message.offset)

    def snapshot(self, channel: str) -> Snapshot:
        """The values that are neither deleted nor expired, and the position they are the state of."""
        log = self.state.logs.get(channel) or self._new_log(channel)
        now = self.clock()
        values = [key.message for key in log.keys.values() if not key.message.deleted and key.expires > now]
        return Snapshot(sorted(values, key=lambda message: message.offset), self.part(log.partition).top)
