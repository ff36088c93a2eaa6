"""The recent messages of the partitions a node follows, whole since a known offset, within a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gateway.message import Message

if TYPE_CHECKING:
    from gateway.session import Session


class Partition:
    """A followed partition: `recent` holds all of it above `whole`, and it was told up to `top`."""

    __slots__ = ("channels", "idle_since", "number", "subscriptions", "top", "whole")

    def __init__(self, number: int, offset: int) -> None:
        self.number = number
        self.whole = offset
        self.top = offset
        self.channels: dict[str, Channel] = {}
        self.subscriptions = 0
        self.idle_since: float | None = None  # when the node last saw that nobody follows it


class Channel:
    """A channel with local sessions or recent messages.

    `live` are the sessions that get each message as it comes. Its values are 0, or an offset above `top` that the
    session knows already: it is passed nothing at or below.
    """

    __slots__ = ("latest", "live", "name", "partition", "recent", "subscriptions")

    def __init__(self, name: str, partition: Partition, latest: bool) -> None:
        self.name = name
        self.partition = partition
        self.latest = latest  # a slow reader is owed the newest value of each key only
        self.live: dict[Session, int] = {}
        self.subscriptions = 0
        self.recent: deque[Message] = deque()


class Recent:
    """Evicts the oldest message of all partitions first; what it lets go raises that partition's `whole`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # bytes
        self.bytes = 0
        self._order: deque[tuple[Channel, int]] = deque()  # offsets: what was cleared must not be kept alive here

    def add(self, channel: Channel, message: Message) -> list[Channel]:
        """Keep a message; returns the channels that hold nothing any more."""
        channel.recent.append(message)
        self._order.append((channel, message.offset))
        self.bytes += message.size
        emptied: list[Channel] = []
        while self.bytes > self.limit or len(self._order) > self.limit // 256:
            oldest, offset = self._order.popleft()
            if oldest.recent and oldest.recent[0].offset == offset:  # else it went with its partition's clear()
                self.bytes -= oldest.recent.popleft().size
                oldest.partition.whole = offset
                if not oldest.recent:
                    emptied.append(oldest)
        return emptied

    def clear(self, partition: Partition) -> None:
        """Let go of all that is held of a partition."""
        for channel in partition.channels.values():
            self.bytes -= sum(message.size for message in channel.recent)
            channel.recent.clear()

    def after(self, channel: Channel, since: int) -> Iterator[Message]:
        """The channel's messages above `since`, which must not be below the partition's `whole`."""
        found: list[Message] = []
        for message in reversed(channel.recent):
            if message.offset <= since:
                break
            found.append(message)
        found.reverse()
        if not channel.latest:
            return iter(found)
        newest = {message.key: message.offset for message in found}
        return (m for m in found if m.key is None or newest[m.key] == m.offset)
