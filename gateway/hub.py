"""From the broker's reader to the sessions: who hears what, who is behind, and how it catches up. Plain calls only.

A subscription is either live, and gets each message as it comes, or behind: it has reached a position and is brought
forward from there, out of the recent messages where they are whole since that position, else page by page out of the
store. One that resumes, one whose partition had a gap and one whose socket was slow are all behind in the same way,
and all go live by the same plain call where the recent messages end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import msgspec

from gateway.brokers.base import Page, Snapshot
from gateway.errors import TOO_SLOW
from gateway.message import VERBS, Control, Message, encode_cursor
from gateway.metrics import Metrics
from gateway.recent import Channel, LatestChannel, Partition, Recent
from gateway.session import WELCOMED, Behind, Budget, Item, Session
from gateway.settings import Settings

Want = Callable[[str, int], None]


class Hub:
    """The node's sessions and what they follow. `want(channel, since)` asks for a page, which comes to `on_page`."""

    def __init__(self, settings: Settings, metrics: Metrics, want: Want) -> None:
        self.settings = settings
        self.metrics = metrics
        self.want = want
        self.partitions: dict[int, Partition] = {}
        self.sessions: set[Session] = set()
        self.recent = Recent(min(settings.recent_bytes, settings.memory_budget // 2))  # the rest is the outboxes'
        self.budget = Budget(settings.memory_budget)
        self._waiting: dict[tuple[str, int], list[Session]] = {}
        self.entered: Callable[[Session, str], None] | None = None  # a session has subscribed to a channel
        self.left: Callable[[Session, str], None] | None = None  # it is subscribed no longer
        self.passing: Message | None = None  # what is offered to its sessions at this moment
        self.verb: Callable[[int, Message], None] = lambda partition, message: None  # told of each on a user
        self.missed: Callable[[int, int], Iterable[Session]] = lambda partition, since: ()  # who else is to catch up
        self.traced: Callable[[Message, Channel], None] = lambda message, at: None  # told of each that has a trace

    # ---------------------------------------------------------------- what the broker tells

    def message(self, partition: int, message: Message) -> None:
        """The next message of a partition: to the recent ones, and to every session that follows its channel live."""
        at = self.partitions.get(partition)
        if at is None:
            return
        self.metrics.ingested += 1
        channel = self._channel(message.channel, at)
        offset, slow = message.offset, None
        self.passing = message
        alone: list[Item] = [message]
        for session, ahead in channel.live.items():
            if offset > ahead and not session.offer(message, alone):
                slow = slow or []
                slow.append(session)
        self.passing = None
        if message.trace is not None:
            self.traced(message, channel)
        self.metrics.deliveries += len(channel.live)
        for session in slow or ():
            self._lag(session)
        at.top = offset
        for emptied in self.recent.add(channel, message):
            self._let_go(emptied)
        if message.channel.startswith(VERBS):
            self.verb(partition, message)
        if self.budget.used + self.recent.bytes > self.budget.limit:
            self._relieve()

    def watermark(self, partition: int, offset: int) -> None:
        """All of a partition up to `offset` has been told; a partition that is new here begins there."""
        at = self.partitions.get(partition)
        if at is None:
            self.partitions[partition] = Partition(partition, offset)
        else:
            at.top = max(at.top, offset)

    def gap(self, partition: int, offset: int) -> None:
        """Something up to `offset` may be missing: whoever follows the partition catches up from where it stood."""
        at = self.partitions.get(partition)
        if at is None:
            return
        self.metrics.gaps += 1
        late = dict.fromkeys(self.missed(partition, at.top))
        for channel in at.channels.values():
            for session, ahead in channel.live.items():
                session.fall_behind(channel, Behind(max(ahead, at.top), proved=False))
                late[session] = None
            channel.live.clear()
        self.recent.clear(at)
        at.whole = at.top = offset
        for channel in list(at.channels.values()):
            self._let_go(channel)
        for session in late:
            self.pump(session)

    # ---------------------------------------------------------------- coming and going

    def forget(self, partition: int) -> None:
        """The broker follows this partition no longer; nobody here does."""
        at = self.partitions.pop(partition)
        self.recent.clear(at)
        for channel in list(at.channels.values()):
            self._let_go(channel)

    def join(
        self, session: Session, name: str, partition: int, since: int | None = None,
        *, quiet: bool = False, snapshot: Snapshot | None = None, request: Any = None,
    ) -> None:  # fmt: skip
        """Subscribe a session to a channel of a followed partition, at the live end or from a position; then `welcome`.

        A presented position is answered with `recovered`, and with a reset when the store cannot show it; `quiet` asks
        for what is held from then on. A snapshot brings its own position.
        """
        channel = self._subscribe(session, name, at := self.partitions[partition])
        if self.entered is not None:
            self.entered(session, name)
        if snapshot is not None:
            session.fall_behind(channel, Behind(snapshot.offset, proved=True))
            values = [msgspec.Raw(message.json) for message in snapshot.messages]
            self._tell(session, name, snapshot.offset, request, snapshot=values)
        elif since is None or (self._is_recent(channel, since) and not self.recent.holds(channel, since)):
            channel.live[session] = 0
            self._tell(session, name, at.top, request, recovered=None if since is None or quiet else True)
        else:
            behind = Behind(since, proved=False, decided=False, quiet=quiet, request=request)
            session.fall_behind(channel, behind)
            session.undecided += 1
            session.told = session.told and session.welcome is None
            if self._is_recent(channel, since):
                self._decide_live(session, channel, behind)

    def listen(self, session: Session, name: str, partition: int, since: int) -> None:
        """Subscribe one of the gateway's own sessions from a position, which nobody has to be told; then pump it."""
        channel = self._subscribe(session, name, self.partitions[partition])
        session.fall_behind(channel, Behind(since, proved=False))

    def _subscribe(self, session: Session, name: str, at: Partition) -> Channel:
        channel = session.channels[name] = self._channel(name, at)
        channel.subscriptions += 1
        at.subscriptions += 1
        self.sessions.add(session)
        return channel

    def welcome(self, session: Session) -> None:
        """Everything the session asked for at first has been joined: open it as soon as each channel is decided."""
        if session.opening is not None and session.undecided:
            self._hold_back(session)  # nothing comes before the welcome
        elif session.opening is not None:
            entries, session.opening = session.opening, None
            session.sent()  # what was held goes to the outbox now
            if session.welcome is not None:
                weight = sum(map(_weight, entries.values()))
                session.offer(Control("welcome", weight=weight, **session.welcome, channels=list(entries.values())))
                session.welcome = WELCOMED
            else:
                session.entries = entries
                session.carrier.wake()
        self.pump(session)

    def unsubscribe(self, session: Session, name: str) -> None:
        channel = session.channels.pop(name)
        behind = session.caught_up(channel)
        if behind is not None and not behind.decided:
            session.undecided -= 1
        channel.live.pop(session)
        channel.subscriptions -= 1
        channel.partition.subscriptions -= 1
        self._let_go(channel)
        if self.left is not None:
            self.left(session, name)

    def leave(self, session: Session) -> None:
        """The session is gone, and everything it held."""
        for name in list(session.channels):
            self.unsubscribe(session, name)
        session.clear()
        self.sessions.discard(session)

    # ---------------------------------------------------------------- catching up

    def pump(self, session: Session) -> None:
        """Bring a session forward as far as its outbox has room; the store is asked for one page at a time."""
        if session.closing is not None:
            return
        if session.opening is not None:
            for channel, behind in list(session.behind.items()):
                if not behind.decided:
                    self._ask(session, channel, behind)
            return
        if session.lagged:
            if session.outbox:
                return
            session.lagged = False
        for channel, behind in list(session.behind.items()):
            if not self._advance(session, channel, behind):
                return
        if not session.told:
            session.told = True  # the end of what it came back for: it need not come from as far again
            session.offer(Control("ping", recallable=True, cursor=encode_cursor(session.reached())))

    def _advance(self, session: Session, channel: Channel, behind: Behind) -> bool:
        """Bring one subscription to its live end; False when it has to wait for room or for the store."""
        if behind.page is not None:
            page, behind.page = behind.page, None
            if not self._replay(session, channel, behind, page):
                return False
        if not self._is_recent(channel, behind.since, behind.proved):
            self._ask(session, channel, behind)
            return False
        if not behind.decided:
            self._decide_live(session, channel, behind)
        for message in self.recent.after(channel, behind.since):
            if self._tight(session) or not session.offer(message):
                return self._wait_for_room(session)
            behind.since = message.offset
            self.metrics.replayed += 1
        session.caught_up(channel)
        channel.live[session] = self.ahead(channel, behind.since)
        if not session.behind and session.welcome is None:
            session.carrier.wake()  # a poll answers now, though it got nothing
        return True

    def ahead(self, channel: Channel, since: int) -> int:
        """What a session that goes live knows already, where that is more than this node does."""
        return since if since > channel.partition.top else 0

    def _is_recent(self, channel: Channel, since: int, proved: bool = False) -> bool:
        """Whether the recent messages, and live ones after them, are all that a position is owed."""
        return channel.partition.whole <= since and (proved or since <= channel.partition.top)

    def _wait_for_room(self, session: Session) -> bool:
        session.lagged = True  # until its outbox has drained
        return False

    def _ask(self, session: Session, channel: Channel, behind: Behind) -> None:
        if behind.waiting or behind.page is not None:
            return
        behind.waiting = True
        wanted = (channel.name, behind.since)
        waiting = self._waiting.get(wanted)
        if waiting is None:
            self._waiting[wanted] = [session]
            self.want(channel.name, behind.since)
        else:
            waiting.append(session)

    def wanted(self, name: str, since: int) -> bool:
        """Whether anybody still waits for the page after `since`."""
        if any(session in self.sessions for session in self._waiting.get((name, since), ())):
            return True
        self._waiting.pop((name, since), None)
        return False

    def on_page(self, name: str, since: int, page: Page) -> None:
        """A page that was asked for: to every session that waits for it."""
        for session in self._waiting.pop((name, since), ()):
            channel = session.channels.get(name)
            behind = session.behind.get(channel) if channel is not None else None
            if channel is None or behind is None or not behind.waiting or behind.since != since:
                continue  # it left, or came back asking for something else
            behind.waiting = False
            behind.page = page if behind.decided else self._decide_by(session, channel, behind, page)
            if session.opening is None:
                self.pump(session)
            else:
                if not session.hold(sum(message.size for message in page.messages)):
                    behind.page = behind.page.proof()  # it is read again, once the session takes what it is sent
                self.welcome(session)

    def _decide_live(self, session: Session, channel: Channel, behind: Behind) -> None:
        self._decide(session, channel, behind, recovered=None if behind.quiet else True)
        behind.quiet = False

    def _decide_by(self, session: Session, channel: Channel, behind: Behind, page: Page) -> Page:
        """Say where a presented position is gone on from; `quiet` begins with what is held, and misses nothing."""
        recovered = None if behind.quiet else page.continuous
        if behind.quiet:
            page = replace(page, since=page.begins, shown=True)
            behind.since, behind.told, behind.quiet = page.since, page.floor, False
        self._decide(session, channel, behind, recovered, offset=page.start)
        return page

    def _decide(
        self, session: Session, channel: Channel, behind: Behind, recovered: bool | None, offset: int | None = None
    ) -> None:
        behind.decided = True
        session.undecided -= 1
        offset = behind.since if offset is None else offset
        self._tell(session, channel.name, offset, behind.request, recovered, position=behind.since)

    def _tell(
        self, session: Session, channel: str, offset: int, request: Any, recovered: bool | None = None,
        *, position: int | None = None, snapshot: list[msgspec.Raw] | None = None,
    ) -> None:  # fmt: skip
        """Say where a subscription begins: in the welcome, or to an open session by itself."""
        entry: dict[str, Any] = {"channel": channel, "offset": offset}
        if recovered is not None:
            self.metrics.resumes["recovered" if recovered else "reset"] += 1
            entry["recovered"] = recovered
        if snapshot is not None:
            entry["snapshot"] = snapshot
        if session.opening is None:
            position = offset if position is None else position
            session.offer(Control("subscribed", position=position, weight=_weight(entry), id=request, **entry))
            return
        session.opening[channel] = entry
        if snapshot is not None:
            session.hold(_weight(entry), force=True)

    def _replay(self, session: Session, channel: Channel, behind: Behind, page: Page) -> bool:
        """Offer a page, behind a reset where it does not continue the position; False when the outbox is full."""
        missed = not page.shown or page.since > page.top or page.floor > max(page.since, behind.told)
        behind.since, behind.told, behind.proved = page.start, page.floor, True
        if missed:
            self.metrics.resets[page.reason] += 1
            session.told = session.welcome is None
            session.offer(
                Control("reset", channel.name, position=page.since, reason=page.reason, offset=page.start)
            )  # fmt: skip
            behind.since = page.begins  # what lies before has been told: no second reset where this is read again
        for message in page.messages:
            if self._tight(session) or not session.offer(message):
                return self._wait_for_room(session)
            behind.since = message.offset
            self.metrics.replayed += 1
        behind.since = page.reached
        return True

    # ---------------------------------------------------------------- bounds

    def _tight(self, session: Session) -> bool:
        """Whether the budget allows no more than one replayed message: what is live is not to suffer for it."""
        return bool(session.outbox) and self.budget.used > self._share(7)

    def _share(self, eighths: int) -> int:
        """So much of what the outboxes may use."""
        return (self.budget.limit - self.recent.bytes) * eighths // 8

    def _lag(self, session: Session) -> None:
        """Queue no more for a session whose outbox is full: all it follows stays where it stands."""
        session.lagged = True
        self._hold_back(session)

    def _hold_back(self, session: Session) -> None:
        for channel in session.channels.values():
            ahead = channel.live.pop(session)
            if ahead is not None:
                session.fall_behind(channel, Behind(max(ahead, channel.partition.top), proved=True))

    def _relieve(self) -> None:
        """The process's budget is used up: the largest outboxes give back their messages, to be read again later.

        What was taken already cannot be given back, nor snapshots; where that is too much, the largest are cut off.
        """
        for session in sorted(self.sessions, key=lambda s: s.queued, reverse=True):
            if self.budget.used <= self._share(7) or not session.outbox:
                break
            self._recall(session)
        for session in sorted(self.sessions, key=lambda s: s.flying + s.queued, reverse=True):
            if self.budget.used <= self._share(8):
                break
            self.metrics.closes[TOO_SLOW] += 1
            if session.welcome is not None:  # a poll answers with what it has
                session.closing = TOO_SLOW
            session.carrier.abort()
            self.leave(session)

    def _recall(self, session: Session) -> None:
        self._lag(session)
        for name, first in session.recall().items():
            channel = session.channels.get(name)
            if channel is not None:
                behind = session.behind[channel]
                behind.since, behind.page = min(behind.since, first - 1), None
                behind.waiting = False

    def _channel(self, name: str, partition: Partition) -> Channel:
        channel = partition.channels.get(name)
        if channel is None:
            kind = LatestChannel if self.settings.policy(name).slow == "latest" else Channel
            channel = partition.channels[name] = kind(name, partition)
        return channel

    def _let_go(self, channel: Channel) -> None:
        """Forget a channel that nobody follows and of which nothing recent is held."""
        if not (channel.subscriptions or channel.recent) and channel.partition.channels.get(channel.name) is channel:
            del channel.partition.channels[channel.name]


def _weight(entry: dict[str, Any]) -> int:
    """Bytes of the snapshot in what a welcome says of a channel."""
    return sum(memoryview(value).nbytes for value in entry["snapshot"]) if "snapshot" in entry else 0
