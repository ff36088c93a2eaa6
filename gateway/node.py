"""A node: the broker, the hub and the tasks around them. The edge where the plain calls of the core meet the loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from gateway import access
from gateway.admission import Admission
from gateway.auth import Authenticator, Identity
from gateway.brokers.base import Broker, Receipt, Snapshot, each_channel
from gateway.cluster import Cluster
from gateway.errors import DRAINING, SERVER_ERROR, TOKEN_EXPIRED, TOO_SLOW, Problem, reconnects
from gateway.hub import Hub
from gateway.interest import Interest
from gateway.message import BEAT, Control, Draft, Heartbeat, encode_cursor, new_id, partition_of
from gateway.metrics import Metrics
from gateway.presence.presence import Presence
from gateway.revoker import Revoker
from gateway.session import Ask, Carrier, Session
from gateway.settings import Settings
from gateway.users import Users
from gateway.wheel import TICK, Wheel

log = logging.getLogger("ringcast.node")

SETTLE = 0.02  # seconds between two looks whether this node can serve by now
LAST_WORDS = 2.0  # seconds that a closing connection has for taking what it was sent
SNAPSHOT_BYTES = 16 << 20  # of all the snapshots of one session's start


class Node:
    def __init__(self, settings: Settings, broker: Broker, auth: Authenticator, metrics: Metrics) -> None:
        self.settings = settings
        self.broker = broker
        self.store: Callable[[Draft], Awaitable[Receipt]] | None = None  # in place of the broker's own `publish`
        self.auth = auth
        self.metrics = metrics
        self.hub = Hub(settings, metrics, lambda *page: self.spawn(self._read(*page), "read"))
        self.interest = Interest(settings, broker, self.hub)
        self.draining = self._stopping = False
        self.on_death: Callable[[], None] = lambda: None  # a task that must not end has ended
        self.own: set[Session] = set()  # sessions that are the gateway's own, with no client behind them
        self._wheel: Wheel[Session] = Wheel()
        self._reads = asyncio.Semaphore(settings.reads)
        self._tasks: set[asyncio.Task[None]] = set()
        self.admission = Admission(settings, auth.limits, metrics, self.missing)
        self.boot = new_id()  # tells this life of the node from others of the same name
        self.cluster = Cluster(self)
        broker.homes = self.cluster.homes
        self.users = Users(self)
        self.revoker = Revoker(self)
        auth.revocations = self.revoker.table
        self.presence = Presence(self) if settings.presence else None

    # ---------------------------------------------------------------- lifetime

    async def start(self) -> None:
        for name, work in (
            ("broker", self.broker.run(self.hub)), ("check", self._check()),
            ("interest", self.interest.run()), ("tick", self._tick()), ("revocations", self.revoker.run()),
            ("nodes", self.cluster.run()),
        ):  # fmt: skip
            self.spawn(work, name, vital=True)
        if self.presence is not None:
            self.spawn(self.presence.run(), "presence", vital=True)

    async def settle(self, within: float) -> None:
        """Wait until nothing is missing any more, but no longer than `within` seconds, nor once it is to leave."""
        deadline = asyncio.get_running_loop().time() + within
        while self.missing() and not self.draining:
            if asyncio.get_running_loop().time() >= deadline:
                log.warning("listening though it cannot serve yet: %s", " and ".join(self.missing().values()))
                return
            await asyncio.sleep(SETTLE)

    def missing(self) -> dict[str, str]:
        """What this node has to know before it can serve anybody, and does not: by a word, in a sentence."""
        missing = {}
        if not self.broker.connected:
            missing["store"] = "the broker's store does not answer"
        if not self.auth.revocations.known.is_set():
            missing["revocations"] = "the revoked tokens have not been read yet"
        if not self.cluster.known:
            missing["membership"] = "the other nodes have not been told of this one yet"
        return missing

    def depart(self) -> None:
        """Leave the ring and be unready; those who are connected are served as before."""
        self.draining = True
        self.cluster.drain()

    async def stop(self) -> None:
        await self.cluster.leave()
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.broker.close()
        await self.auth.close()

    def spawn(self, work: Coroutine[Any, Any, None], name: str, *, vital: bool = False) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled() and (self._stopping or not vital):
                return
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is not None:
                log.critical("task %s of the node died", name, exc_info=error)
            if vital or error is not None:
                self.on_death()

        task.add_done_callback(ended)

    # ---------------------------------------------------------------- publishing

    async def publish(self, draft: Draft) -> Receipt:
        """Store and announce one message; raises the problems that `Broker.publish` names."""
        began = time.perf_counter()
        try:
            receipt = await (self.store or self.broker.publish)(draft)
        except Problem as problem:
            self._count(problem, time.perf_counter() - began)
            raise
        self._count(receipt, time.perf_counter() - began)
        return receipt

    def publish_at_once(self, draft: Draft) -> Receipt:
        """The same as `publish`, where it need not wait."""
        assert self.broker.publish_now is not None
        began = time.perf_counter()
        try:
            receipt = self.broker.publish_now(draft)
        except Problem as problem:
            self._count(problem, time.perf_counter() - began)
            raise
        self._count(receipt, time.perf_counter() - began)
        return receipt

    async def publish_all(self, drafts: Sequence[Draft]) -> list[Receipt | Exception]:
        """The same of several: what became of each; those of one channel are stored in their order."""
        began = time.perf_counter()
        store = self.store
        found = await (self.broker.publish_all(drafts) if store is None else each_channel(store, drafts))
        receipts = [each for each in found if isinstance(each, Receipt)]
        repeats = sum([receipt.duplicate for receipt in receipts])
        published = self.metrics.published
        published["stored"] += len(receipts) - repeats
        published["duplicate"] += repeats
        published.update([each.code for each in found if isinstance(each, Problem)])
        self.metrics.publish.add(time.perf_counter() - began, len(receipts))
        return found

    def _count(self, found: Receipt | Exception, seconds: float) -> None:
        if isinstance(found, Receipt):
            self.metrics.published["duplicate" if found.duplicate else "stored"] += 1
            self.metrics.publish.add(seconds)
        elif isinstance(found, Problem):
            self.metrics.published[found.code] += 1

    # ---------------------------------------------------------------- sessions

    def session(self, identity: Identity, carrier: Carrier, *, welcome: bool, transport: str = "") -> Session:
        """A session for a connection of `identity`; `welcome` where its transport has that frame."""
        settings = self.settings
        session = Session(new_id(), self.hub.budget, settings.outbox_bytes, settings.outbox_items, carrier)
        session.transport = transport
        self.admit(session, identity)
        now = asyncio.get_running_loop().time()
        session.opened_at = session.pinged_at = session.told_at = session.moved_at = now
        if welcome:
            session.welcome = self.welcome_fields(session, identity)
        return session

    def own_session(self, carrier: Carrier) -> Session:
        """A session of the gateway's own, with no client behind it."""
        session = self.session(Identity("ringcast"), carrier, welcome=False)
        self.own.add(session)
        return session

    def welcome_fields(self, session: Session, identity: Identity) -> dict[str, Any]:
        return {
            "session": session.id, "node": self.settings.node, **self.placement(identity),
            "heartbeat_ms": round(self.settings.heartbeat * 1000),
        }  # fmt: skip

    def placement(self, identity: Identity) -> dict[str, Any]:
        """Where this client is best placed: its user's partition, and that one's home where it is elsewhere."""
        own = identity.own_channels
        partition = self.partition(own[0]) if own else None
        return {"partition": partition, "home": None if partition is None else self.cluster.home(partition)}

    def admit(self, session: Session, identity: Identity) -> None:
        """Let the session be of these credentials, and live as long as they do."""
        if self.presence is not None and session.identity.info != identity.info:
            self.presence.renew(session, identity)
        session.identity = identity
        now = asyncio.get_running_loop().time()
        session.expires_at = None if identity.expires is None else now + identity.expires - time.time()
        if session in self.hub.sessions:
            self.schedule(session)  # the new ones may end sooner than it was to be looked at

    def partition(self, channel: str) -> int:
        return partition_of(channel, self.settings.partitions)

    async def open(self, session: Session, asks: Iterable[Ask]) -> None:
        """Subscribe a session to what it asks for at first; its welcome follows when every channel is decided.

        Raises Problem `unavailable` when the store does not answer in time.
        """
        await self.subscribe(session, list(asks))
        if session.welcome is not None:
            self.schedule(session)

    def open_at_once(self, session: Session, asks: list[Ask]) -> bool:
        """The same where nothing has to be asked of the store; False, having done nothing, where something has."""
        follows, home = self.hub.partitions, self.users.partition(session)
        if home is not None and home not in follows:
            return False
        for ask in asks:
            ask.partition = self.broker.partition(ask.channel)
            if ask.snapshot or ask.quiet or ask.partition not in follows:
                return False
        self._joined(session, asks, home, {})
        self.schedule(session)
        return True

    def join(self, session: Session, channels: list[str]) -> None:
        """Subscribe an open session to what is live of channels whose partitions are followed."""
        asks = [Ask(channel, partition=self.broker.partition(channel)) for channel in channels]
        self._joined(session, asks, self.users.partition(session), {})

    async def subscribe(self, session: Session, asks: list[Ask]) -> None:
        """Subscribe a session to more channels. Raises as `open` does."""
        home = self.users.partition(session)
        for ask in asks:
            ask.partition = self.broker.partition(ask.channel)
        partitions = {ask.partition for ask in asks} | ({home} if home is not None else set())
        snapshots: dict[str, Snapshot] = {}
        try:
            async with asyncio.timeout(self.settings.open_within):
                await self.interest.follow(partitions)
                for ask in asks:
                    if ask.quiet and ask.since:
                        ask.since = await self.broker.position_at(ask.channel, ask.since)
                if any(ask.snapshot for ask in asks):
                    snapshots = await self._snapshots(asks)
                    await self.interest.follow(partitions)
        except TimeoutError:
            raise Problem("unavailable", "The store does not answer: try again soon", retry_after=2) from None
        self._joined(session, asks, home, snapshots)  # no await from here on: what is followed stays followed

    def _joined(self, session: Session, asks: list[Ask], home: int | None, snapshots: dict[str, Snapshot]) -> None:
        self.auth.check(session.identity)  # what was revoked since it came in ended only those who were here
        self.users.add(session, home)
        for ask in asks:
            if ask.channel not in session.channels:
                self.hub.join(
                    session, ask.channel, ask.partition, ask.since, quiet=ask.quiet,
                    snapshot=snapshots.get(ask.channel), request=ask.request,
                )  # fmt: skip
        policies = [self.settings.policy(channel) for channel in session.channels]
        session.history_ttl = min([policy.history_ttl for policy in policies], default=4 * 3600.0)
        self.hub.welcome(session)

    async def _snapshots(self, asks: list[Ask]) -> dict[str, Snapshot]:
        snapshots: dict[str, Snapshot] = {}
        size = 0
        for ask in asks:
            if ask.snapshot:
                snapshots[ask.channel] = await self.broker.snapshot(ask.channel)
                size += sum(message.size for message in snapshots[ask.channel].messages)
                if size > SNAPSHOT_BYTES:
                    raise Problem("too_large", "The snapshots are too large together: ask for fewer channels at once")
        return snapshots

    def leave(self, session: Session) -> None:
        """The connection is gone."""
        access.ended(session)
        self._wheel.cancel(session)
        self.users.remove(session)
        self.own.discard(session)
        self.hub.leave(session)

    def sent(self, session: Session) -> None:
        """The transport has written all it took, and can take more."""
        session.sent()
        session.moved_at = asyncio.get_running_loop().time()
        self.hub.pump(session)

    def goodbye(self, session: Session, code: int, hint: str, *, after: float = 0.0, grace: float = 0.0) -> None:
        """Tell the client to go, with its cursor.

        For `after` seconds it stays and receives; it is closed `grace` seconds later, by the code, if it has not left.
        """
        if session.closing is not None or (session.leave_at is not None and after + grace > 0):
            return
        session.offer(Control(
            "goodbye", recallable=True, code=code, reconnect=reconnects(code), after_ms=round(after * 1000),
            cursor=encode_cursor(session.reached()), hint=hint,
        ))  # fmt: skip
        if after + grace > 0:
            session.leave_at = asyncio.get_running_loop().time() + after + grace
            self._wheel.schedule(session, session.leave_at)
        else:
            self.end(session, code)

    def end(self, session: Session, code: int) -> None:
        """Close the session's connection by this code, once it has what was queued for it."""
        self.metrics.closes[code] += 1
        session.closing = code  # the transport closes when its outbox is empty
        session.carrier.wake()

    # ---------------------------------------------------------------- timers

    def schedule(self, session: Session) -> None:
        """Look at the session when the next of its times has come."""
        at = session.pinged_at + min(self.settings.heartbeat, session.tell_every)
        for other in (session.expires_at, session.leave_at, session.tell_at):
            if other is not None:
                at = min(at, other)
        if session.opening is not None:
            at = min(at, session.opened_at + self.settings.open_within)
        self._wheel.schedule(session, at)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            now = loop.time()
            self.admission.lag = now - due
            for session in list(self._wheel.due(now)):
                self._due(session, now)

    def _due(self, session: Session, now: float) -> None:
        """A session's time has come: to end, to be given up, or to hear from us."""
        stuck = session.flying > 0 and session.moved_at < session.pinged_at
        if stuck and now - session.moved_at > self.settings.stuck_after:
            self.end(session, TOO_SLOW)
            session.carrier.abort()
            return
        if session.tell_at is not None and now >= session.tell_at:
            session.tell_at = None
            session.carrier.wake()
            if now < session.pinged_at + min(self.settings.heartbeat, session.tell_every):
                self.schedule(session)
                return
        if session.closing is not None:
            pass
        elif session.leave_at is not None and now >= session.leave_at:
            self.end(session, DRAINING)
        elif session.expires_at is not None and now >= session.expires_at:
            self.goodbye(session, TOKEN_EXPIRED, "The token has expired: get a new one and come back")
        elif session.opening is not None:
            if now >= session.opened_at + self.settings.open_within:
                self.goodbye(session, SERVER_ERROR, "The store does not answer: come back soon")
        elif not stuck:
            self._ping(session, now)
        if session.closing is not None:
            session.expires_at = session.leave_at = None
        session.pinged_at = now
        self.schedule(session)

    def _ping(self, session: Session, now: float) -> None:
        """The heartbeat; with a cursor where one of the session's channels was last heard of too long ago."""
        beat = BEAT
        if now - session.told_at >= session.tell_every - TICK:
            session.told_at = now
            beat = Heartbeat(encode_cursor(session.reached()))
        session.offer(beat)

    # ---------------------------------------------------------------- the store

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(self.settings.check_interval)
            try:
                await self.broker.check(list(self.hub.partitions))
            except Problem as problem:
                log.warning("the periodic check did not reach the store: %s", problem)

    async def _read(self, channel: str, since: int) -> None:
        """Read a page for those who wait for it, as often as it takes."""
        async with self._reads:
            while self.hub.wanted(channel, since):
                try:
                    page = await self.broker.read(channel, since, self.settings.page_messages)
                except Problem as problem:
                    await asyncio.sleep(problem.retry_after or 1.0)
                else:
                    self.hub.on_page(channel, since, page)
