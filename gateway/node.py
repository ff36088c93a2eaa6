"""A node: the broker, the hub and the tasks around them. The edge where the plain calls of the core meet the loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gateway.auth import Authenticator, Identity
from gateway.brokers.base import Broker, Receipt, Snapshot
from gateway.cluster import Cluster
from gateway.errors import DRAINING, SERVER_ERROR, TOKEN_EXPIRED, TOO_SLOW, Problem, reconnects
from gateway.hub import Hub
from gateway.message import Control, Draft, encode_cursor, new_id, partition_of
from gateway.metrics import Metrics
from gateway.session import Ask, Session
from gateway.settings import Settings
from gateway.wheel import TICK, Wheel

log = logging.getLogger("ringcast.node")

LAST_WORDS = 2.0  # seconds that a closing connection has for taking what it was sent
SNAPSHOT_BYTES = 16 << 20  # of all the snapshots of one session's start


class Node:
    def __init__(self, settings: Settings, broker: Broker, auth: Authenticator, metrics: Metrics) -> None:
        self.settings = settings
        self.broker = broker
        self.auth = auth
        self.metrics = metrics
        self.hub = Hub(settings, metrics, self._want)
        self.draining = False
        self.on_death: Callable[[], None] = lambda: None  # a task that must not end has ended
        self._wheel: Wheel[Session] = Wheel()
        self._following: dict[int, asyncio.Future[None]] = {}  # partitions that somebody waits for
        self._interest = asyncio.Event()
        self._reads = asyncio.Semaphore(settings.reads)
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections: Counter[str] = Counter()  # by transport; polls while they wait
        self.cluster = Cluster(self)

    # ---------------------------------------------------------------- lifetime

    async def start(self) -> None:
        for name, work in (
            ("broker", self.broker.run(self.hub)), ("check", self._check()),
            ("interest", self._own_interest()), ("tick", self._tick()),
        ):  # fmt: skip
            self._spawn(work, name, vital=True)
        if not self.cluster.alone:
            self._spawn(self.cluster.run(), "nodes", vital=True)

    async def stop(self) -> None:
        await self.cluster.leave()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.broker.close()
        await self.auth.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str, *, vital: bool = False) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                return
            error = task.exception()
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
            receipt = await self.broker.publish(draft)
        except Problem as problem:
            self.metrics.published[problem.code] += 1
            raise
        self.metrics.published["duplicate" if receipt.duplicate else "stored"] += 1
        self.metrics.publish_took(time.perf_counter() - began)
        return receipt

    # ---------------------------------------------------------------- sessions

    @contextmanager
    def connection(self, transport: str, address: str) -> Iterator[None]:
        """Count a connection for as long as it lasts. Raises Problem `draining`, `full`, `rate_limited`."""
        if self.draining:
            raise Problem("draining", "This node is shutting down: try again, another one answers", retry_after=1)
        if self.connections.total() >= self.settings.max_connections:
            raise Problem("full", "This node holds as many connections as it may: try again soon", retry_after=5)
        self.auth.limits.connect(address)
        self.connections[transport] += 1
        try:
            yield
        finally:
            self.connections[transport] -= 1
            self.auth.limits.disconnect(address)

    def session(self, identity: Identity, wake: Callable[[], None], *, welcome: bool) -> Session:
        """A session for a connection of `identity`; `welcome` where its transport has that frame."""
        settings = self.settings
        session = Session(new_id(), self.hub.budget, settings.outbox_bytes, settings.outbox_items, wake)
        now = asyncio.get_running_loop().time()
        self.admit(session, identity)
        session.opened_at = session.pinged_at = session.told_at = session.moved_at = now
        if welcome:
            session.welcome = self.welcome_fields(session, identity)
        return session

    def welcome_fields(self, session: Session, identity: Identity) -> dict[str, Any]:
        own = identity.own_channels
        partition = self.partition(own[0]) if own else None
        return {
            "session": session.id, "node": self.settings.node, "partition": partition,
            "home": None if partition is None else self.cluster.home(partition),
            "heartbeat_ms": round(self.settings.heartbeat * 1000),
        }  # fmt: skip

    def admit(self, session: Session, identity: Identity) -> None:
        """Let the session live as long as these credentials."""
        now = asyncio.get_running_loop().time()
        session.expires_at = None if identity.expires is None else now + identity.expires - time.time()
        if session in self.hub.sessions:
            self._schedule(session)  # the new ones may end sooner than it was to be looked at

    def partition(self, channel: str) -> int:
        return partition_of(channel, self.settings.partitions)

    async def open(self, session: Session, asks: Iterable[Ask]) -> None:
        """Subscribe a session to what it asks for at first; its welcome follows when every channel is decided.

        Raises Problem `unavailable` when the store does not answer in time.
        """
        await self._join(session, asks, {})
        if session.welcome is not None:
            self._schedule(session)

    async def subscribe(self, session: Session, ask: Ask, request: Any) -> None:
        """Subscribe an open session to one more channel; `request` is the id its `subscribed` answers."""
        await self._join(session, [ask], {ask.channel: request})

    async def _join(self, session: Session, asks: Iterable[Ask], requests: dict[str, Any]) -> None:
        asks = list(asks)
        try:
            async with asyncio.timeout(self.settings.open_within):
                partitions = {self.broker.partition(ask.channel) for ask in asks}
                snapshots: dict[str, Snapshot] = {}
                await self._follow(partitions)
                for ask in asks:
                    if ask.quiet and ask.since:
                        ask.since = await self.broker.position_at(ask.channel, ask.since)
                if any(ask.snapshot for ask in asks):
                    snapshots = await self._snapshots(asks)
                    await self._follow(partitions)
        except TimeoutError:
            raise Problem("unavailable", "The store does not answer: try again soon", retry_after=2) from None
        for ask in asks:  # no await from here on: what is followed stays followed
            if ask.channel not in session.channels:
                self.hub.join(
                    session, ask.channel, self.broker.partition(ask.channel), ask.since, quiet=ask.quiet,
                    snapshot=snapshots.get(ask.channel), request=requests.get(ask.channel),
                )  # fmt: skip
        session.tell_every = min(
            (self.settings.policy(channel).history_ttl / 4 for channel in session.channels), default=3600.0
        )
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
        self._wheel.cancel(session)
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
        if session.closing is not None or session.leave_at is not None:
            return
        session.offer(Control(
            "goodbye", recallable=True, code=code, reconnect=reconnects(code), after_ms=round(after * 1000),
            cursor=encode_cursor(session.reached()), hint=hint,
        ))  # fmt: skip
        if after + grace > 0:
            session.leave_at = asyncio.get_running_loop().time() + after + grace
            self._wheel.schedule(session, session.leave_at)
        else:
            self._end(session, code)

    def _end(self, session: Session, code: int) -> None:
        self.metrics.closes[code] += 1
        session.closing = code  # the transport closes when its outbox is empty
        session.wake()

    # ---------------------------------------------------------------- timers

    def _schedule(self, session: Session) -> None:
        at = session.pinged_at + min(self.settings.heartbeat, session.tell_every)
        if session.expires_at is not None:
            at = min(at, session.expires_at)
        if session.opening is not None:
            at = min(at, session.opened_at + self.settings.open_within)
        if session.leave_at is not None:
            at = min(at, session.leave_at)
        self._wheel.schedule(session, at)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            for session in list(self._wheel.due(now)):
                self._due(session, now)

    def _due(self, session: Session, now: float) -> None:
        """A session's time has come: to end, to be given up, or to hear from us."""
        stuck = session.flying > 0 and session.moved_at < session.pinged_at
        if stuck and now - session.moved_at > self.settings.stuck_after:
            self.metrics.closes[TOO_SLOW] += 1
            session.on_abort()
            return
        if session.closing is not None:
            pass
        elif session.leave_at is not None and now >= session.leave_at:
            self._end(session, DRAINING)
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
        self._schedule(session)

    def _ping(self, session: Session, now: float) -> None:
        """The heartbeat; with a cursor where one of the session's channels was last heard of too long ago."""
        cursor = None
        if now - session.told_at >= session.tell_every - TICK:
            session.told_at = now
            cursor = encode_cursor(session.reached())
        session.offer(Control("ping", recallable=True, cursor=cursor))

    # ---------------------------------------------------------------- the store

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(self.settings.check_interval)
            try:
                await self.broker.check(list(self.hub.partitions))
            except Problem as problem:
                log.warning("the periodic check did not reach the store: %s", problem)

    async def _follow(self, partitions: set[int]) -> None:
        """Wait until all of these are followed. Costs nothing when they are."""
        while missing := [partition for partition in partitions if partition not in self.hub.partitions]:
            loop = asyncio.get_running_loop()
            waiting = [self._following.setdefault(partition, loop.create_future()) for partition in missing]
            self._interest.set()
            await asyncio.gather(*(asyncio.shield(future) for future in waiting))

    async def _own_interest(self) -> None:
        """The one owner of subscriptions: what comes up meanwhile is the next batch."""
        while True:
            try:
                async with asyncio.timeout(max(TICK, min(1.0, self.settings.linger / 4))):
                    await self._interest.wait()
            except TimeoutError:
                await self._unfollow()
                continue
            self._interest.clear()
            wanted, self._following = self._following, {}
            try:
                await self.broker.subscribe([p for p in wanted if p not in self.hub.partitions])
            except Problem as problem:
                for future in wanted.values():
                    future.set_exception(problem)
                    future.exception()  # whoever waited may have left
            else:
                for future in wanted.values():
                    future.set_result(None)

    async def _unfollow(self) -> None:
        now = asyncio.get_running_loop().time()
        idle: list[int] = []
        for number, partition in self.hub.partitions.items():
            if partition.subscriptions:
                partition.idle_since = None
            elif partition.idle_since is None:
                partition.idle_since = now
            elif now - partition.idle_since >= self.settings.linger:
                idle.append(number)
        if not idle:
            return
        for number in idle:  # first here, so that nobody joins what is about to go
            self.hub.forget(number)
        await self.broker.unsubscribe(idle)

    def _want(self, channel: str, since: int) -> None:
        self._spawn(self._read(channel, since), "read")

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

    # ---------------------------------------------------------------- ending

    def depart(self) -> None:
        """Leave the ring and be unready; those who are connected are served as before."""
        self.draining = True
        self.cluster.drain()

    async def drain(self, over: float, grace: float, hurry: asyncio.Event) -> None:
        """Send every session away, spread over `over` seconds; returns when all have gone, or at once when hurried."""
        self.depart()
        self.cluster.deaf()
        sessions = [session for session in self.hub.sessions if session.welcome is not None]
        hint = "This node is shutting down: come back, and another one goes on from your cursor"
        for index, session in enumerate(sessions):
            self.goodbye(session, DRAINING, hint, after=over * index / len(sessions), grace=grace)
        for session in list(self.hub.sessions):
            if session.welcome is None:
                session.wake()  # a poll that waits answers now
        deadline = asyncio.get_running_loop().time() + over + grace + LAST_WORDS
        while self.hub.sessions and asyncio.get_running_loop().time() < deadline:
            if hurry.is_set():
                for session in list(self.hub.sessions):
                    if session.closing is None and session.welcome is not None:
                        self._end(session, DRAINING)
                hurry.clear()
            await asyncio.sleep(TICK / 5)
        for session in list(self.hub.sessions):
            session.on_abort()  # it takes nothing, not even its goodbye
