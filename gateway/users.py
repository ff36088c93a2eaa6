"""Whose the sessions of this node are, and what is done to all of a user's at once, from outside.

A verb is a message of the reserved channel `ringcast:user.<user>`, in the user's partition, which a node that has a
session of the user follows anyway. Each partition has an ear: a session of the gateway's own that is subscribed to the
channels of the users who are here, once there is a verb for them. So verbs come by the same chain as any message, in
order, and what was missed while the store was away is read afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import KINDS, Problem
from gateway.follow import AGAIN
from gateway.message import VERBS, Control, Message
from gateway.session import Item, Session

if TYPE_CHECKING:
    from gateway.node import Node

DISCONNECT, SUBSCRIBE, UNSUBSCRIBE = "disconnect", "subscribe", "unsubscribe"  # a verb's event

log = logging.getLogger("ringcast.users")


class End(msgspec.Struct):
    """The data of a `disconnect`: the code of the problem that ends the sessions, and a sentence for a person."""

    code: str
    hint: str


class Channels(msgspec.Struct):
    """The data of a `subscribe` and an `unsubscribe`."""

    channels: list[str]


_decode_end = msgspec.json.Decoder(End).decode
_decode_channels = msgspec.json.Decoder(Channels).decode


class Users:
    """The sessions of each user, and an ear for each partition that has some. Iterate over it for the users."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._ears: dict[int, Ear] = {}
        node.hub.verb, node.hub.missed = self._heard, self._missed

    def __iter__(self) -> Iterator[str]:
        return (user for ear in self._ears.values() for user in ear.sessions)

    def of(self, user: str) -> list[Session]:
        ear = self._ears.get(self._node.broker.partition(VERBS + user))
        return [] if ear is None else ear.of(user)

    def by_partition(self) -> Iterator[tuple[int, int]]:
        """How many sessions there are of the users of each partition, as the broker counts those."""
        for number, ear in self._ears.items():
            yield number, sum(len(ear.of(user)) for user in ear.sessions)

    def partition(self, session: Session) -> int | None:
        """The partition, as the broker counts, to be followed before the session is added; None for no user's."""
        user = session.identity.subject
        return None if user is None else self._node.broker.partition(VERBS + user)

    def add(self, session: Session, partition: int | None) -> None:
        """A session is about to open, and its user's `partition` is followed. A second time does nothing."""
        if partition is not None:
            ear = self._ears.get(partition)
            if ear is None:
                ear = self._ears[partition] = Ear(self._node, partition)
            ear.add(session)

    def remove(self, session: Session) -> None:
        partition = self.partition(session)
        ear = None if partition is None else self._ears.get(partition)
        if partition is not None and ear is not None:
            ear.remove(session)
            if not ear.sessions:
                self._ears.pop(partition).close()

    def _heard(self, partition: int, message: Message) -> None:
        ear = self._ears.get(partition)
        if ear is not None:
            ear.begin(message)

    def _missed(self, partition: int, since: int) -> list[Session]:
        """Something may be missing, a verb on any user as well: the sessions that are to read what it was."""
        ear = self._ears.get(partition)
        return [] if ear is None else ear.look(since)


class Ear:
    """Hears the verbs on the users of one partition, and does them one after another.

    Nearly all users never have one. So their channels are subscribed to by the first that comes, or when one may have
    been missed, until all of it is done; from then on the hub tells of the next.
    """

    def __init__(self, node: Node, partition: int) -> None:
        self.sessions: dict[str, Session | set[Session]] = {}  # most users have one, and a set of one has 230 bytes
        self._node = node
        self._partition = partition
        self._awake = False
        self._session = self._new()
        self._followed = node.hub.partitions[partition]
        self._followed.subscriptions += 1  # for as long as there is an ear

    def _new(self) -> Session:
        session = self._node.own_session(self)
        session.opening = None  # nobody waits for its welcome
        return session

    def of(self, user: str) -> list[Session]:
        found = self.sessions.get(user, ())
        return [found] if isinstance(found, Session) else list(found)

    def add(self, session: Session) -> None:
        user = session.identity.subject
        assert user is not None
        found = self.sessions.get(user)
        if isinstance(found, set):
            found.add(session)
        elif found is None:
            self.sessions[user] = session
        elif found is not session:
            self.sessions[user] = {found, session}

    def remove(self, session: Session) -> None:
        user = session.identity.subject
        found = self.sessions.get(user) if user is not None else None
        if user is None or not (found is session or (isinstance(found, set) and session in found)):
            return
        if isinstance(found, set):
            found.discard(session)
            if found:
                return
        del self.sessions[user]
        if VERBS + user in self._session.channels:
            self._node.hub.unsubscribe(self._session, VERBS + user)

    def begin(self, verb: Message) -> None:
        """Hear the channel of the first verb on a user who is here, from it on."""
        if verb.channel[len(VERBS) :] in self.sessions and verb.channel not in self._session.channels:
            self._node.hub.listen(self._session, verb.channel, self._partition, verb.offset - 1)
            self._node.hub.pump(self._session)

    def look(self, since: int) -> list[Session]:
        """Hear every user's channel from a position on."""
        for user in self.sessions:
            if VERBS + user not in self._session.channels:
                self._node.hub.listen(self._session, VERBS + user, self._partition, since)
        return [self._session]

    def close(self) -> None:
        self._followed.subscriptions -= 1
        self._node.leave(self._session)

    def abort(self) -> None:
        """The hub wants what this session holds: another one goes on from where it stood."""
        session, positions = self._session, self._session.positions()
        self._session = self._new()
        self._node.leave(session)
        for channel, since in positions.items():
            self._node.hub.join(self._session, channel, self._partition, since)
        self._node.hub.welcome(self._session)

    def wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._node.spawn(self._work(), "verbs")

    async def _work(self) -> None:
        """Do what has come; what comes meanwhile waits in the session, which is bounded as any other."""
        try:
            while items := self._session.take():
                for item in items:
                    await self._do(item)
                self._node.sent(self._session)
            if not self._session.behind:
                for channel in list(self._session.channels):
                    self._node.hub.unsubscribe(self._session, channel)
        finally:
            self._awake = False

    async def _do(self, item: Item) -> None:
        if not isinstance(item, Message):
            if item.kind == "reset":
                log.warning("verbs on a user may have been missed: %s", item.body)
            return
        sessions = [each for each in self._node.users.of(item.channel[len(VERBS) :]) if self._was_there(each, item)]
        try:
            if item.event == DISCONNECT:
                end = _decode_end(item.data)
                for session in sessions:
                    self._node.goodbye(session, KINDS[end.code].close, end.hint)
            elif item.event == SUBSCRIBE:
                await self._subscribe(sessions, _decode_channels(item.data).channels)
            elif item.event == UNSUBSCRIBE:
                for session in sessions:
                    self._unsubscribe(session, _decode_channels(item.data).channels)
        except (msgspec.DecodeError, KeyError) as error:
            log.error("a verb %s cannot be read by this version, and is not done here: %r", item.event, error)

    def _was_there(self, session: Session, verb: Message) -> bool:
        """Whether the session had begun when the verb was sent, or may have, by clocks that differ.

        Of interest where a verb comes late: whoever came in between came after it, with what is allowed by now.
        """
        began = time.time() - (asyncio.get_running_loop().time() - session.opened_at)
        return began <= (verb.time + 1) / 1000 + self._node.settings.jwt_leeway  # whole milliseconds, rounded down

    async def _subscribe(self, sessions: list[Session], channels: list[str]) -> None:
        """Subscribe to what is live: at once, or when the store answers again, for those who are still there."""
        node, most = self._node, self._node.settings.max_channels
        partitions = {node.broker.partition(channel) for channel in channels}
        while any(map(self._is_here, sessions)):
            try:
                await node.interest.follow(partitions)
            except Problem as problem:
                log.debug("users are not subscribed yet: %s", problem)
                await asyncio.sleep(AGAIN)
                continue
            for session in filter(self._is_here, sessions):  # no await from here on
                missing = [channel for channel in channels if channel not in session.channels]
                if len(session.channels) + len(missing) <= most:
                    node.join(session, missing)
                else:
                    detail = f"Not subscribed to {len(missing)} more channels: one session has {most} at most"
                    session.offer(Control("error", code="too_many_channels", message=detail))
            return

    def _unsubscribe(self, session: Session, channels: list[str]) -> None:
        if not self._is_here(session):
            return
        hub = self._node.hub
        for channel in [channel for channel in channels if channel in session.channels]:
            hub.unsubscribe(session, channel)
            if session.opening is None:
                session.offer(Control("unsubscribed", channel))
            else:
                session.opening.pop(channel, None)  # its welcome is still to come, and does not name it
        hub.welcome(session)

    def _is_here(self, session: Session) -> bool:
        return session.closing is None and session in self._node.hub.sessions
