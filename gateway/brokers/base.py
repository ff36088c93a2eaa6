"""What a broker promises. Read this file before any other of this folder.

A broker is one node's connection to a store that all nodes share. The store keeps a log for each channel, groups the
channels into partitions and announces each new message on its partition's subject. The verbs and what they promise:

Order.       A channel's offsets grow in the order in which its publishes were acknowledged. Live messages of one
             partition are told in the order of their offsets, each at most once.
Atomicity.   `publish` is one step in the store: dedupe, compare versions, assign the offset, append, trim, update the
             key table, announce. `read` and `snapshot` are one atomic view of the store each.
             Of `publish_all`, those of one channel are stored in the order in which they are given.
Duplicates.  A repeated id within the window returns the first offset and stores nothing.
Loss.        A live message may get lost between the store and a node. Each one names the offset before it in its
             partition and the history (the server process, or its log) it was written in, so the broker notices and
             tells a `gap`; `check` finds the lost last message, which no later one would reveal. A store that lost
             something itself raises its floor, so that every read below it says so. What cannot be proven whole is
             never claimed to be.
Away.        While the store is away `publish`, `read`, `snapshot`, `subscribe` and `check` raise Problem
             ("unavailable") after a bounded wait. An acknowledged publish was stored. Reconnecting is the broker's own
             work, inside `run`, and every reconnect checks all partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from gateway.errors import Problem
from gateway.message import Draft, Message


class Unreadable(ValueError):
    """What is stored or announced is in the format of a newer release, or no gateway wrote it.

    It is never passed over in silence: what is announced so is a gap, and a page with one in it shows no position.
    """


def unreadable() -> Problem:
    """What a caller is told where it cannot do without what is unreadable here."""
    detail = "A newer release has stored what this node cannot read: ask another node, or upgrade this one"
    return Problem("unavailable", detail, retry_after=5)


@dataclass(slots=True)
class Counts:
    """What a broker counts, for the metrics."""

    disconnects: int = 0  # connections to the store that were lost
    losses: int = 0  # partitions that this node found to have lost something it knew of, and that were told so


class Events(Protocol):
    """What a broker tells its node; plain calls, so that nothing can come between the reader and the sockets."""

    def message(self, partition: int, message: Message) -> None:
        """The next message of a subscribed partition; everything before it has been told, or told as a gap."""

    def watermark(self, partition: int, offset: int) -> None:
        """All up to `offset` has been told; also where a newly subscribed partition begins."""

    def gap(self, partition: int, offset: int) -> None:
        """Messages up to `offset` may not have been told; live goes on behind it."""


class Receipt(msgspec.Struct):
    """An acknowledged publish."""

    channel: str
    offset: int
    id: str
    duplicate: bool = False


@dataclass(slots=True)
class Page:
    """What one atomic view of the store holds of a channel above a position.

    A reader may go on from `since` without having missed anything when `floor <= since <= top` and `shown`; otherwise
    it is told a reset at `min(since, top)`. Either way `messages` (in the order of their offsets) follow, and then it
    has reached `reached`: the last message's offset while there is `more`, else the partition's highest.
    """

    since: int
    shown: bool  # nothing after `since` has left this channel's log
    floor: int
    top: int  # the partition's highest offset
    messages: list[Message]
    more: bool
    until: int = 0  # where there is more: what this page covers, should that be further than its last message

    @property
    def continuous(self) -> bool:
        return self.shown and self.floor <= self.since <= self.top

    @property
    def start(self) -> int:
        return min(self.since, self.top)

    @property
    def reached(self) -> int:
        if not self.more:
            return max(self.top, self.start)
        return max(self.until, self.messages[-1].offset if self.messages else self.start)

    @property
    def begins(self) -> int:
        """The position from which on nothing is missing here: `since`, or right before the first of `messages`."""
        if self.continuous:
            return self.since
        return self.messages[0].offset - 1 if self.messages else self.reached

    def proof(self) -> Page:
        """The page without its messages, which are read again: what it proves, up to where they begin."""
        return replace(self, top=min(self.begins, self.top), messages=[], more=False)

    @property
    def reason(self) -> str:
        """Why it is not continuous, for the `reset`: `unknown` (never issued here), `lost` or `trimmed`."""
        if self.since > self.top:
            return "unknown"
        return "lost" if self.since < self.floor else "trimmed"


@dataclass(slots=True)
class Snapshot:
    """The newest value of each key of a channel, in the order of offsets, and the position it is the state of."""

    messages: list[Message]
    offset: int


PublishAll = Callable[[Sequence[Draft]], Awaitable[list[Receipt | Exception]]]


async def each_channel(
    publish: Callable[[Draft], Awaitable[Receipt]], drafts: Sequence[Draft]
) -> list[Receipt | Exception]:
    """`publish_all` for a store that takes one at a time: channels side by side, the drafts of each in their order."""
    found: list[Receipt | Exception] = [Problem("server_error", "It was not published")] * len(drafts)
    by_channel: dict[str, list[int]] = {}
    for place, draft in enumerate(drafts):
        by_channel.setdefault(draft.channel, []).append(place)

    async def one_channel(places: list[int]) -> None:
        for place in places:
            try:
                found[place] = await publish(drafts[place])
            except Exception as error:  # told to whoever published it
                found[place] = error

    await asyncio.gather(*map(one_channel, by_channel.values()))
    return found


class Broker(Protocol):
    """One node's connection to the store. Every verb may be called from any task of the node's loop."""

    counts: Counts
    ids_used: Callable[[], int]  # bytes of the idempotency table that this node's publishes take
    homes: Callable[[], Collection[int]]  # the partitions whose keys this node ends when their time is over

    @property
    def connected(self) -> bool:
        """Whether the store answers; a node that is not connected is not ready, but stays alive."""

    def partition(self, channel: str) -> int:
        """The number under which the channel's live messages are subscribed and told.

        Channels of one number share a chain of offsets. It is the channel's partition, unless the store keeps several
        chains for one.
        """

    async def start(self) -> None:
        """Look at the store once, before anything else.

        Raises ConfigError where it cannot be used, as by a node with another number of partitions. That it is away is
        no error: `run` goes on trying.
        """

    async def run(self, events: Events) -> None:
        """Tell `events` what happens, reconnect when needed; ends only by cancellation."""

    async def subscribe(self, partitions: Collection[int]) -> None:
        """Follow these partitions: subscribed, confirmed, checked, and their watermark told before this returns.

        Raises Problem `unavailable` where one of them could not be; those whose watermark was told are followed.
        """

    async def unsubscribe(self, partitions: Collection[int]) -> None:
        """Follow these partitions no longer; nothing of them is told once this returns.

        Never fails: while the store is away there is nothing to leave, and `run` does not come back to them.
        """

    async def publish(self, draft: Draft) -> Receipt:
        """Store and announce one message.

        Raises Problem: `stale_version`, `too_many_keys`, `id_reused`, `ids_full`, `unavailable`.
        """

    @property
    def publish_now(self) -> Callable[[Draft], Receipt] | None:
        """`publish`, where the store is this process's own, so that nobody has to wait for it; else None."""

    @property
    def publish_all(self) -> PublishAll:
        """Publishes several as `publish` does, those of one channel in their order: what became of each."""

    async def read(self, channel: str, since: int, limit: int) -> Page:
        """At most `limit` messages above `since`, and what the store can prove of that position.

        The page's `top` is not below what this node was told: a store that has less lost something and is checked
        first. What was read is part of what a later check tells.

        Where the channel's policy is `slow = "latest"` a keyed message that a newer one of its key replaced is left
        out; leaving it out breaks no proof.
        """

    async def snapshot(self, channel: str) -> Snapshot:
        """The channel's key table."""

    async def position_at(self, channel: str, time: int) -> int:
        """The position before everything stored at or after that time (microseconds since 1970)."""

    async def check(self, partitions: Collection[int]) -> None:
        """Compare with the store what this node was told in these partitions, or acknowledged in any; tell gaps."""

    async def close(self) -> None:
        """Let go of the store's connections."""
