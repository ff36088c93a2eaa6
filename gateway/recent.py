"""The recent messages of the partitions a node follows, whole since a known offset, within a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

from gateway.message import Message

if TYPE_CHECKING:
    from gateway.session import Session


# Of a channel that nothing recent is held of, as are most: a deque of its own, even an empty one, has 600 bytes.
NONE: deque[Message] = deque(maxlen=0)


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


class Live:
    """The sessions that get each message of a channel as it comes: a mapping in the order in which they went live.

    Its values are 0, or an offset above the partition's `top` that the session knows already: it is passed nothing at
    or below. Most channels have one session, and a dict of one has 220 bytes.
    """

    __slots__ = ("_ahead", "_who")

    def __init__(self) -> None:
        self._who: Session | dict[Session, int] | None = None  # a dict once there were two
        self._ahead = 0  # of the one

    def items(self) -> Iterable[tuple[Session, int]]:
        who = self._who
        if type(who) is dict:
            return who.items()
        return () if who is None else ((cast("Session", who), self._ahead),)

    def __iter__(self) -> Iterator[Session]:
        return (session for session, _ in self.items())

    def __len__(self) -> int:
        return len(self._who) if type(self._who) is dict else self._who is not None

    def __getitem__(self, session: Session) -> int:
        if session is self._who:
            return self._ahead
        if type(self._who) is not dict:
            raise KeyError(session)
        return self._who[session]

    def __setitem__(self, session: Session, ahead: int) -> None:
        who = self._who
        if type(who) is dict:
            who[session] = ahead
        elif who is None or who is session:
            self._who, self._ahead = session, ahead
        else:
            self._who = {cast("Session", who): self._ahead, session: ahead}

    def pop(self, session: Session) -> int | None:
        """Let go of a session; None where it was not live."""
        who = self._who
        if who is session:
            self._who = None
            return self._ahead
        if type(who) is not dict:
            return None
        ahead = who.pop(session, None)
        if not who:
            self._who = None
        return ahead

    def clear(self) -> None:
        self._who = None


class Channel(Live):
    """A channel with local sessions, those who follow it live among them, or recent messages.

    It is its own `live`, which would have 64 bytes more as another object.
    """

    __slots__ = ("name", "partition", "recent", "subscriptions")

    latest = False  # whether a slow reader is owed the newest value of each key only

    def __init__(self, name: str, partition: Partition) -> None:
        super().__init__()
        self.name = name
        self.partition = partition
        self.subscriptions = 0
        self.recent = NONE

    @property
    def live(self) -> Live:
        return self

    def __bool__(self) -> bool:
        return True  # also one that nobody follows


class LatestChannel(Channel):
    __slots__ = ()

    latest = True


class Recent:
    """Evicts the oldest message of all partitions first; what it lets go raises that partition's `whole`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # bytes
        self.bytes = 0
        self._order: deque[tuple[Channel, int]] = deque()  # offsets: what was cleared must not be kept alive here

    def add(self, channel: Channel, message: Message) -> list[Channel]:
        """Keep a message; returns the channels that hold nothing any more."""
        if channel.recent is NONE:
            channel.recent = deque()
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
                    oldest.recent = NONE
                    emptied.append(oldest)
        return emptied

    def clear(self, partition: Partition) -> None:
        """Let go of all that is held of a partition."""
        for channel in partition.channels.values():
            self.bytes -= sum(message.size for message in channel.recent)
            channel.recent = NONE

    def holds(self, channel: Channel, since: int) -> bool:
        """Whether there are messages of the channel above `since`, which must not be below the partition's `whole`."""
        return bool(channel.recent) and channel.recent[-1].offset > since

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
