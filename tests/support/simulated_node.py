"""A node of a simulated world: what stands between store and hub, one step at a time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from gateway.brokers.base import Page, Snapshot
from gateway.brokers.chain import Chain, Claim, Frame
from gateway.brokers.memory_store import MemoryStore
from gateway.errors import Problem
from gateway.hub import Hub
from gateway.message import Control, Draft, Message
from gateway.metrics import Metrics
from gateway.recent import Channel
from gateway.session import Behind, Session
from tests.support.subscriber import WatchedSession

if TYPE_CHECKING:
    from tests.support.world import World

SECOND = 1_000_000


@dataclass(slots=True)
class Published:
    number: int
    id: str
    channel: str
    partition: int
    key: str | None
    offset: int


@dataclass(slots=True)
class StampedPage(Page):
    """A page that remembers how many messages were published when it was read."""

    stamp: int = 0


class WatchedHub(Hub):
    """The hub, noting which page each reset comes from. It decides nothing."""

    def _replay(self, session: Session, channel: Channel, behind: Behind, page: Page) -> bool:
        _note(session, page)
        return super()._replay(session, channel, behind, page)

    def _decide_by(self, session: Session, channel: Channel, behind: Behind, page: Page) -> Page:
        decided = super()._decide_by(session, channel, behind, page)
        said = session.opening[channel.name] if session.opening is not None else None
        if said is None:
            frame = session.outbox[-1]
            assert isinstance(frame, Control)
            said = frame.body
        said["stamp"] = _note(session, page)
        return decided


def _note(session: Session, page: Page) -> int:
    assert isinstance(session, WatchedSession)
    assert isinstance(page, StampedPage)
    session.stamp = page.stamp
    return page.stamp


@dataclass(slots=True)
class Parts:
    """The classes a world is made of: a test takes one part of the rule out by handing in a subclass."""

    store: type[MemoryStore] = MemoryStore
    chain: type[Chain] = Chain
    hub: type[WatchedHub] = WatchedHub
    witness: bool = True  # nodes remember what they published
    checks: bool = True  # nodes check now and then
    tears: bool = False  # stores are also replaced while they live on: then two take writes, and the old one's are lost


class Node:
    """What stands between store and hub on one node; its calls to the store take any time."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.store = world.store
        self.boot()

    def boot(self) -> None:
        world = self.world
        self.hub = world.parts.hub(world.settings, Metrics(), self.want)
        self.chain = world.parts.chain(self, lambda: world.time / SECOND)
        self.store = world.store
        self.linked = True
        self.inbox: deque[Frame] = deque()
        self.wants: list[tuple[str, int]] = []
        self.pages: list[tuple[str, Page]] = []
        self.checking: dict[int, list[Claim]] = {}  # claims under way to the store
        self.answers: dict[int, tuple[int, str, bool, set[str]]] = {}  # and its answers under way back
        self.acks: deque[tuple[Published, str]] = deque()
        self.received: dict[int, set[str]] = {}  # ids by partition: what this node knows of while it follows it
        self.acknowledged: set[str] = set()  # and what it knows of for good
        self.next_check = 0

    def want(self, channel: str, since: int) -> None:
        self.wants.append((channel, since))

    # -- Events

    def message(self, partition: int, message: Message) -> None:
        self.received.setdefault(partition, set()).add(message.id)
        self.hub.message(partition, message)

    def watermark(self, partition: int, offset: int) -> None:
        self.hub.watermark(partition, offset)

    def gap(self, partition: int, offset: int) -> None:
        self.hub.gap(partition, offset)

    # -- what MemoryBroker does, one step at a time

    def follow(self, partition: int) -> bool:
        """Subscribe and check, as MemoryBroker does in one step, or as other brokers do: the answer comes later."""
        if partition not in self.chain.followed and self.linked:
            if self.world.random.random() < 0.3:
                self.chain.expect(partition)
                self.tell(partition)
                return False
            ids = self.world.stored(self.store, partition)
            self.chain.begin(partition, *self.store.check(partition, self.chain.claims(partition)))
            self._learn(partition, ids)
        return partition in self.hub.partitions

    def unfollow(self, partition: int) -> None:
        at = self.hub.partitions.get(partition)
        if at is not None and not at.subscriptions:
            self.chain.end(partition)
            self.hub.forget(partition)
            self.received.pop(partition, None)
            self.checking.pop(partition, None)
            self.answers.pop(partition, None)

    def publish(self, draft: Draft) -> None:
        store, partition = self.store, self.world.partition(draft.channel)
        if self.chain.history(partition) not in ("", store.history):
            self.check(partition)
        try:
            receipt = store.publish(draft)
        except Problem:
            return
        self.acks.append((self.world.records[receipt.id], store.history))

    def hear_acks(self) -> None:
        while self.acks:
            record, history = self.acks.popleft()
            self.acknowledged.add(record.id)
            if self.world.parts.witness:
                self.chain.acknowledged(record.partition, record.offset, history)

    def check(self, partition: int) -> None:
        self.tell(partition)
        self.ask(partition)
        self.answer(partition)

    def tell(self, partition: int) -> None:
        self.checking[partition] = self.chain.claims(partition)
        self.answers.pop(partition, None)

    def ask(self, partition: int) -> None:
        store, claims = self.store, self.checking.pop(partition)
        floor = store.part(partition).floor
        top, history = store.check(partition, claims)
        raised = store.part(partition).floor != floor
        self.answers[partition] = (top, history, raised, self.world.stored(store, partition))

    def answer(self, partition: int, *, live: bool = False) -> None:
        """`live`: frames take another way than answers, so what the answer is ahead may be on its way."""
        top, history, raised, ids = self.answers.pop(partition)
        if live and not raised:
            self.chain.reported(partition, top, history)
        else:
            self.chain.answered(partition, top, history)
        at = self.chain.followed.get(partition)
        self._learn(partition, ids if at is None or at.watermark >= top else set())

    def _learn(self, partition: int, ids: set[str]) -> None:
        """Who was told a partition's highest offset knows of all it stands for."""
        if partition in self.chain.followed:
            self.received.setdefault(partition, set()).update(ids)
        if partition in self.chain.known:
            self.acknowledged |= ids

    def knows(self, record: Published) -> bool:
        return record.id in self.acknowledged or record.id in self.received.get(record.partition, ())

    @property
    def settled(self) -> bool:
        """Whether all it knows of was told to the present store."""
        histories = {at.history for at in self.chain.followed.values()}.union(*self.chain.known.values())
        return self.store is self.world.store and not self.acks and histories <= {self.store.history, ""}

    def cut(self) -> None:
        """The link to the store is gone, and with it all that was under way."""
        self.linked = False
        for partition in set(self.chain.followed) - set(self.hub.partitions):
            self.chain.end(partition)  # its subscription failed
        self.checking.clear()
        self.answers.clear()

    def link(self) -> None:
        if not self.linked:
            self.linked = True
            self.chain.suspect(self.chain.followed)

    def receive(self, count: int) -> None:
        while self.inbox and count:
            self.chain.frame(self.inbox.popleft())
            count -= 1

    def check_due(self) -> None:
        rounds = 0
        while self.linked and self.chain.due:
            for partition in sorted(self.chain.due):
                self.check(partition)
            rounds += 1
            if rounds > 20:
                return self.world.fail(f"{self.name} checks partitions {self.chain.due} for ever")
        return None

    def check_all(self) -> None:
        if self.linked and self.world.parts.checks and self.world.time >= self.next_check:
            self.next_check = self.world.time + int(self.world.settings.check_interval * SECOND)
            for partition in sorted({*self.chain.followed, *self.chain.known}):
                self.check(partition)

    def read_page(self, index: int) -> None:
        if self.linked and self.wants:
            channel, since = self.wants.pop(index % len(self.wants))
            if not self.hub.wanted(channel, since):
                return
            page = self.store.read(channel, since, self.world.settings.page_messages)
            if not self.reads(channel, page.top):
                page = self.store.read(channel, since, self.world.settings.page_messages)
            stamped = StampedPage(**{f.name: getattr(page, f.name) for f in fields(Page)}, stamp=self.world.published)
            self.pages.append((channel, stamped))

    def snapshot(self, channel: str) -> Snapshot:
        snapshot = self.store.snapshot(channel)
        return snapshot if self.reads(channel, snapshot.offset) else self.store.snapshot(channel)

    def reads(self, channel: str, top: int) -> bool:
        partition = self.world.partition(channel)
        fits = self.chain.read(partition, top, self.store.history)
        self.acknowledged |= self.world.stored(self.store, partition)
        if not fits:
            self.check(partition)
        return fits

    def deliver_page(self, index: int) -> None:
        if self.pages:
            channel, page = self.pages.pop(index % len(self.pages))
            self.hub.on_page(channel, page.since, page)

    def work(self) -> None:
        """Everything that waits, in the order in which it came."""
        self.hear_acks()
        self.receive(len(self.inbox))
        for partition in sorted(self.checking):
            self.ask(partition)
        for partition in sorted(self.answers):
            self.answer(partition)
        self.chain.overdue()
        self.check_due()
        self.check_all()
        self.check_due()
        for _ in range(1000):
            if not self.linked or not (self.wants or self.pages):
                return
            self.read_page(0)
            self.deliver_page(0)
        self.world.fail(f"{self.name} reads {self.wants} for ever")
