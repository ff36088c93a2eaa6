"""A subscriber of a simulated world: it joins, reads at its own pace, loses connections, and notes what is wrong."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

from gateway.brokers.base import Snapshot
from gateway.message import Control, Message, decode_cursor, encode_cursor
from gateway.session import Budget, Calls, Item, Session

if TYPE_CHECKING:
    from tests.support.simulated_node import Node
    from tests.support.world import World

NEVER = 10**9


class WatchedSession(Session):
    """A session that notes how much of the world each reset speaks of. Hashed by number: runs repeat exactly."""

    def __init__(self, number: int, budget: Budget, limit: int, items: int) -> None:
        super().__init__(str(number), budget, limit, items, Calls(lambda: None))
        self.number = number
        self.stamp = 0  # how many messages were published when the page at hand was read
        self.stamps: dict[int, int] = {}  # by id of a reset
        self.resets: list[Control] = []  # keeps those ids from being used again

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other

    def offer(self, item: Item, alone: list[Item] | None = None) -> bool:
        if isinstance(item, Control) and item.kind == "reset":
            self.stamps[id(item)] = self.stamp
            self.resets.append(item)
        return super().offer(item, alone)


class Subscriber:
    """`ws` builds its cursor from what it saw, `sse` takes it from checkpoints, `poll` leaves with each answer."""

    def __init__(self, world: World, name: str, kind: str, channels: list[str]) -> None:
        self.world = world
        self.name = name
        self.kind = kind
        self.channels = channels
        self.cursor: dict[str, int] = {}
        self.seen: dict[str, set[str]] = {channel: set() for channel in channels}
        self.since = dict.fromkeys(channels, NEVER)  # what was published up to then is owed to nobody
        self.more = False  # a poll that did not get everything comes back at once
        self.told = dict.fromkeys(channels, 0)  # what was published up to then was told as lost, or maybe lost
        self.away()

    def away(self) -> None:
        """The connection is gone, and all that was known of it."""
        self.node: Node | None = None
        self.session: WatchedSession | None = None
        self.joining: list[str] = []
        self.at: dict[str, int] = {}  # the position of each channel whose subscription this connection was told of
        self.owed_reset: set[str] = set()
        self.asked: dict[str, deque[tuple[int | None, int | None]]] = {name: deque() for name in self.channels}
        self.snapshots: dict[str, tuple[Snapshot, int]] = {}
        self.unsent = False

    def fail(self, what: str) -> None:
        self.world.fail(f"{self.name} ({self.kind}): {what}")

    # ---------------------------------------------------------------- coming and going

    @property
    def comes_back(self) -> bool:
        """Whether it is away and has reason to connect again at once."""
        return self.node is None and (self.more or self.kind != "poll")

    def connect(self, node: Node) -> None:
        settings, world = self.world.settings, self.world
        self.node = node
        session = WatchedSession(world.next_number(), node.hub.budget, settings.outbox_bytes, settings.outbox_items)
        session.welcome = None if self.kind == "poll" else {}
        session.carrier = Calls(lambda: None, self.away)
        self.session = session
        self.joining = world.random.sample(self.channels, len(self.channels))
        self.join_some()

    def join_some(self) -> None:
        """Wait for the first partitions still missing; all channels are subscribed to once the last is followed."""
        node, session = self.node, self.session
        assert node is not None
        assert session is not None
        for _ in range(self.world.random.randint(1, len(self.joining))):
            if not node.follow(self.world.partition(self.joining.pop())):
                return self.leave()
        if not self.joining:
            if not all(node.follow(self.world.partition(channel)) for channel in self.channels):
                return self.leave()
            for channel in self.world.random.sample(self.channels, len(self.channels)):
                self.subscribe(channel)
            node.hub.welcome(session)
        return None

    def subscribe(self, channel: str) -> None:
        node, session, random = self.node, self.session, self.world.random
        assert node is not None
        assert session is not None
        since, quiet, snapshot = self.cursor.get(channel), False, None
        begins = self.world.published
        if channel in self.snapshots:
            snapshot, begins = self.snapshots.pop(channel)
            since = None
        elif random.random() < 0.1:
            since, quiet = self.world.store.clock() - random.choice([1, 100, 2000]) * 1_000_000, True
        elif random.random() < 0.05:
            since = None
        presented = None if quiet else since
        self.asked[channel].append((presented, begins if presented is None else None))
        node.hub.join(
            session, channel, self.world.partition(channel), since, quiet=quiet, snapshot=snapshot, request=1
        )  # fmt: skip

    def take_snapshot(self, node: Node, channel: str) -> None:
        self.snapshots[channel] = (node.snapshot(channel), self.world.published)

    def resubscribe(self, channel: str) -> None:
        """Unsubscribe, or subscribe to a channel that is not: on the open connection of a WebSocket."""
        node, session = self.node, self.session
        if self.kind != "ws" or node is None or session is None or session.opening is not None or self.joining:
            return
        if channel in session.channels:
            behind = session.behind.get(session.channels[channel])
            if behind is not None and not behind.decided:
                self.asked[channel].pop()  # nothing will be said of it
            node.hub.unsubscribe(session, channel)
            session.offer(Control("unsubscribed", channel))
        elif node.follow(self.world.partition(channel)):
            self.subscribe(channel)
            node.hub.welcome(session)

    def leave(self) -> None:
        if self.node is not None and self.session is not None:
            self.node.hub.leave(self.session)
        self.away()

    # ---------------------------------------------------------------- reading

    def read(self, limit: int, *, lose: bool = False, slow: bool = False) -> None:
        """Take what waits, up to `limit` bytes; `lose`: the connection breaks with it; `slow`: it stays unsent."""
        node, session = self.node, self.session
        if node is None or session is None:
            return
        if self.unsent:
            self.unsent = False
            session.sent()
            node.hub.pump(session)
            return
        if self.kind == "poll":
            limit = 1 << 30
            if session.opening is not None or self.joining:
                return
        taken = session.take(limit)
        checkpoint = session.positions() if session.opening is None and not self.joining else None
        if lose:
            self.leave()
            return
        if self.kind == "poll":
            for entry in (session.entries or {}).values():
                self._entry(entry)
        for item in taken:
            self.see(item, session)
        if self.kind != "ws" and checkpoint is not None:
            self.cursor = checkpoint
        if self.kind == "poll":
            self.more = bool(session.outbox or session.behind)
            self.leave()
            return
        if slow:
            self.unsent = bool(taken)
        else:
            session.sent()
            node.hub.pump(session)

    def ping(self) -> None:
        if self.session is not None and self.session.opening is None and not self.joining and self.kind == "ws":
            self.session.offer(Control("ping", recallable=True, cursor=encode_cursor(self.session.reached())))

    def see(self, item: Item, session: WatchedSession) -> None:
        if isinstance(item, Message):
            self._message(item)
        elif item.kind == "welcome":
            for entry in item.body["channels"]:
                self._entry(entry)
        elif item.kind == "subscribed":
            self._entry(item.body)
        elif item.kind == "reset":
            channel, offset = item.body["channel"], item.body["offset"]
            if channel not in self.at:
                return self.fail(f"reset of {channel}, which it does not follow")
            self.owed_reset.discard(channel)
            self.told[channel] = max(self.told[channel], session.stamps[id(item)])
            self.at[channel] = offset
            self._position(channel, offset)
        elif item.kind == "unsubscribed":
            channel = item.body["channel"]
            self.at.pop(channel, None)
            self.owed_reset.discard(channel)
        elif item.kind == "ping":
            for channel, offset in decode_cursor(item.body["cursor"], 1 << 16).items():
                if channel in self.at:
                    if offset < self.at[channel]:
                        self.fail(f"{channel}: a ping's cursor says {offset} after {self.at[channel]}")
                    self.at[channel] = offset
                    self._position(channel, offset)
        return None

    def _message(self, message: Message) -> None:
        channel = message.channel
        if channel not in self.at:
            return self.fail(f"message of {channel}, which it does not follow")
        if message.offset <= self.at[channel]:
            self.fail(f"{channel}: {message.offset} after {self.at[channel]}")
        if channel in self.owed_reset:
            self.fail(f"{channel}: recovered was false, and no reset came before {message.offset}")
        self.at[channel] = message.offset
        self._position(channel, message.offset)
        self.seen[channel].add(message.id)
        return None

    def _entry(self, entry: dict[str, Any]) -> None:
        """A channel of a welcome, or a `subscribed`."""
        channel, offset, recovered = entry["channel"], entry["offset"], entry.get("recovered")
        presented, begins = self.asked[channel].popleft()
        if (presented is None) != (recovered is None):
            self.fail(f"{channel}: presented {presented}, recovered {recovered}")
        if recovered and presented is not None and (offset < presented or self._unseen(channel, presented, offset)):
            self.fail(f"{channel}: recovered at {offset}, presented {presented}")
        if recovered is False:
            self.owed_reset.add(channel)
            self.told[channel] = max(self.told[channel], entry["stamp"])
        if begins is not None:
            self.since[channel] = max(begins, entry.get("stamp", 0))
        for value in entry.get("snapshot", ()):
            self.seen[channel].add(json.loads(bytes(value))["id"])
        self.at[channel] = offset
        self._position(channel, offset)

    def _unseen(self, channel: str, since: int, offset: int) -> bool:
        """Whether something of the channel lies between two positions that this client has not seen."""
        return any(
            record.channel == channel and since < record.offset <= offset and record.id not in self.seen[channel]
            for record in self.world.records.values()
        )

    def _position(self, channel: str, offset: int) -> None:
        if self.kind == "ws":
            self.cursor[channel] = offset
