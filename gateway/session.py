"""One subscriber's connection, without the connection: what it is owed, where it stands, what waits to be written."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Protocol, cast

import msgspec

from gateway.brokers.base import Page
from gateway.identity import Identity
from gateway.message import MAX_OFFSET, Control, Message
from gateway.recent import Channel
from gateway.wheel import Slot

Item = Message | Control

_GATEWAY = Identity("ringcast")

BATCH = 64 << 10  # bytes that a transport takes at a time; what it has taken cannot be given back
SMALL = BATCH // 4  # bytes of the smallest batch


class Ask(msgspec.Struct):
    """One channel that a session asks for: at its live end, from a position, or with a snapshot."""

    channel: str
    since: int | None = None
    quiet: bool = False  # `since` is a time (microseconds), which the store turns into a position: no reset
    snapshot: bool = False
    request: Any = None  # the id of the frame that asked, on an open connection
    partition: int = 0  # as the broker counts; known to the node


# Of the many sessions that are behind nowhere and have nothing to write: read like others, and never written to.
NOWHERE = cast("dict[Channel, Behind]", MappingProxyType({}))
NOTHING = cast("list[Item]", ())

WELCOMED: dict[str, Any] = {}  # the `welcome` of a session that has been sent it


class Carrier(Protocol):
    """Whoever takes what a session holds: a connection, or a reader of the gateway's own."""

    def wake(self) -> None:
        """There is something, where there was nothing."""

    def abort(self) -> None:
        """It takes too little: cut it off."""


class Calls:
    """A carrier made of two calls."""

    __slots__ = ("abort", "wake")

    def __init__(self, wake: Callable[[], None], abort: Callable[[], None] | None = None) -> None:
        self.wake = wake
        self.abort = _nothing if abort is None else abort


class Budget:
    """What the outboxes of the process may hold together, in bytes."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def batch(self) -> int:
        """What one session may take to write: less, the less there is left, so that a thousand stopped ones fit."""
        return max(SMALL, min(BATCH, (self.limit - self.used) // 1024))


class Behind:
    """A subscription that does not follow live: it has reached `since` and catches up from there.

    `proved` tells a position of the store's from one that a client presented. Until it is `decided` the client waits
    to be told whether its replay begins without a gap.
    """

    __slots__ = ("decided", "page", "proved", "quiet", "request", "since", "told", "waiting")

    def __init__(self, since: int, *, proved: bool, decided: bool = True, quiet: bool = False, request: Any = None):
        self.since = since
        self.proved = proved
        self.decided = decided
        self.quiet = quiet  # asked for what is held "since" then: no reset for what is not
        self.request = request  # the id of the subscribe frame to answer
        self.told = 0  # the floor below which a loss has been told
        self.page: Page | None = None  # read while the session was opening
        self.waiting = False


class Session:
    """Sans-I/O: the hub offers, a transport takes and says when it has sent.

    An item is counted against the budget from the offer until it was sent.
    """

    __slots__ = (
        "_items_limit", "_limit", "behind", "budget", "carrier", "channels", "closing", "entries", "expires_at",
        "flying", "history_ttl", "id", "identity", "lagged", "leave_at", "moved_at", "opened_at", "opening", "outbox",
        "pinged_at", "queued", "slot", "tell_at", "told", "told_at", "transport", "undecided", "unseen", "welcome",
    )  # fmt: skip

    def __init__(self, id: str, budget: Budget, limit: int, items: int, carrier: Carrier) -> None:
        self.id = id
        self.identity = _GATEWAY  # whose it is, by the credentials of now
        self.unseen = False  # it does not make its user present
        self.transport = ""  # by which its client receives; none where it is the gateway's own
        self.budget = budget
        self._limit, self._items_limit = limit, items
        self.carrier = carrier
        self.channels: dict[str, Channel] = {}
        self.behind = NOWHERE
        self.outbox = NOTHING
        self.queued = 0  # bytes in the outbox
        self.flying = 0  # bytes taken and not sent yet
        self.opening: dict[str, dict[str, Any]] | None = {}  # what the welcome will say of each channel; None after it
        self.undecided = 0
        self.welcome: dict[str, Any] | None = None  # the rest of the welcome frame; None where the transport has none
        self.closing: int | None = None  # the close code, once it is to end
        self.told = True  # whether it knows how far it is, where that is more than its messages say
        self.lagged = False  # messages are no longer queued until the outbox has drained
        self.entries: dict[str, dict[str, Any]] | None = None  # what the welcome said, where the transport has none
        # Times of the node's clock, in seconds.
        self.opened_at = self.pinged_at = self.told_at = self.moved_at = 0.0
        self.expires_at: float | None = None  # when its credentials do
        self.slot: Slot | None = None  # of the node's wheel
        self.leave_at: float | None = None  # when it is closed, having been told goodbye
        self.tell_at: float | None = None  # when it wants to be woken, to tell its position
        self.history_ttl = 0.0  # seconds: the shortest of its channels'

    @property
    def tell_every(self) -> float:
        """How often it is told a cursor, so that a quiet channel's position stays young: in seconds."""
        return self.history_ttl / 4

    def offer(self, item: Item, alone: list[Item] | None = None) -> bool:
        """Queue an item, or refuse a message for which there is no room.

        `alone` is a list of nothing else, for all who are offered it: a list of one item is never added to.
        """
        size, outbox = item.size, self.outbox
        if not outbox:
            if self.closing is not None and isinstance(item, Message):
                return False
            self.carrier.wake()
            self.outbox = [item] if alone is None else alone
        else:
            full = self.queued + size > self._limit or len(outbox) >= self._items_limit
            if isinstance(item, Message) and (self.closing is not None or (full and self._holds_message())):
                return False
            if len(outbox) == 1:
                self.outbox = [*outbox, item]
            else:
                outbox.append(item)
        self.queued += size
        self.budget.used += size
        return True

    def _holds_message(self) -> bool:
        """An outbox that holds none takes any."""
        return any(isinstance(item, Message) for item in self.outbox)

    def take(self, limit: int | None = None) -> list[Item]:
        """What is to be written next, in order: at most `limit` bytes or a batch; one item at least if there is one."""
        if not self.outbox:
            return []
        taken: list[Item] = []
        size = 0
        if self.queued <= SMALL and limit is None:  # what fits into any batch
            taken, self.outbox = self.outbox, NOTHING
            self.flying += self.queued
            self.queued = 0
            return taken
        if limit is None:
            limit = self.budget.batch
        for item in self.outbox:
            if taken and size + item.size > limit:
                break
            size += item.size
            taken.append(item)
        self.outbox = self.outbox[len(taken) :] or NOTHING
        self.queued -= size
        self.flying += size
        return taken

    def passed(self) -> None:
        """All that waits has left the process, without having been taken."""
        self.budget.used -= self.queued
        self.queued = 0
        self.outbox = NOTHING

    def sent(self) -> None:
        """All that was taken has left the process."""
        self.budget.used -= self.flying
        self.flying = 0

    def hold(self, size: int, *, force: bool = False) -> bool:
        """Count what waits for the welcome: a page only if it fits into what an outbox may hold."""
        if self.flying + size > self._limit and not force:
            return False
        self.flying += size
        self.budget.used += size
        return True

    def recall(self) -> dict[str, int]:
        """Take back the queued messages; returns the first offset taken back of each channel.

        A reset between them goes too: it is told again when they are. What says a position behind them is corrected.
        """
        kept: list[Item] = []
        recalled: dict[str, int] = {}
        for item in self.outbox:
            if isinstance(item, Message):
                recalled.setdefault(item.channel, item.offset)
            elif item.kind in ("subscribed", "unsubscribed") and item.channel is not None:
                recalled.pop(item.channel, None)  # of the subscription before
                kept.append(item)
            elif item.kind == "welcome":
                for entry in item.body["channels"]:
                    entry["offset"] = min(entry["offset"], recalled.get(entry["channel"], MAX_OFFSET + 1) - 1)
                kept.append(item)
            elif item.kind == "reset" and item.channel in recalled:
                behind = self.behind.get(self.channels[item.channel]) if item.channel in self.channels else None
                if behind is not None:
                    behind.told = 0
            elif not item.recallable:
                kept.append(item)
        size = sum(item.size for item in kept)
        self.budget.used += size - self.queued
        self.outbox, self.queued = kept or NOTHING, size
        return recalled

    def clear(self) -> None:
        """The connection is gone: nothing waits any more."""
        self.budget.used -= self.queued + self.flying
        self.outbox = NOTHING
        self.queued = self.flying = 0

    def fall_behind(self, channel: Channel, behind: Behind) -> None:
        """It follows the channel no longer live, or not yet."""
        if self.behind:
            self.behind[channel] = behind
        else:
            self.behind = {channel: behind}

    def caught_up(self, channel: Channel) -> Behind | None:
        """It is behind no longer there; None where it was not."""
        if not self.behind:
            return None
        behind = self.behind.pop(channel, None)
        if not self.behind:
            self.behind = NOWHERE
        return behind

    def position(self, channel: Channel) -> int:
        """The offset up to which everything of the channel has been offered to this session."""
        behind = self.behind.get(channel)
        return behind.since if behind is not None else max(channel.partition.top, channel.live[self])

    def reached(self) -> dict[str, int]:
        """Per channel, the position after all that has been offered."""
        return {name: self.position(channel) for name, channel in self.channels.items()}

    def positions(self) -> dict[str, int]:
        """Per channel, the position after what has been taken: what a cursor beside it says."""
        positions = self.reached()
        pending: set[str] = set()
        for item in self.outbox:
            if item.channel in positions and item.channel not in pending:
                if isinstance(item, Message):
                    pending.add(item.channel)
                    positions[item.channel] = item.offset - 1
                elif item.position is not None:
                    pending.add(item.channel)
                    positions[item.channel] = item.position
        return positions


def _nothing() -> None:
    pass
