"""A simulated world around the one rule: the product's store, chains, hubs and sessions, with no loop and no sleep.

Everything that a network or a clock does is a step here, drawn from one seeded stream: frames get lost or wait, pages
arrive late, a store fails over to an older copy, clients come and go. What must hold after each step and at the end
is noted in `faults` where it does not. A seed repeats its run exactly.
"""

from __future__ import annotations

import copy
from random import Random
from typing import Any

from gateway.brokers.chain import Frame
from gateway.brokers.memory_store import MemoryStore
from gateway.message import Draft, new_id, partition_of
from gateway.settings import Policy, Settings
from tests.support import invariants
from tests.support.simulated_node import SECOND, Node, Parts, Published
from tests.support.subscriber import Subscriber

SKEW = [0, 0, 0, -1, 2]  # seconds by which the clock of a store that takes over is off
# few:g expires within a minute, big:c is bounded by bytes, tab: keeps the newest values, key: all of them
CHANNELS = ["cat:a", "cat:b", "big:c", "tab:d", "tab:e", "key:f", "few:g"]


class World:
    def __init__(self, random: Random, parts: Parts | None = None, **settings: Any) -> None:
        self.random = random
        self.parts = parts or Parts()
        self.faults: list[str] = []
        self.time = 1_700_000_000 * SECOND
        self.skew = 0
        self.published = 0  # messages so far
        self.numbers = 0
        self.records: dict[str, Published] = {}  # by id
        self.resets = self.delivered = 0
        self.settings = make_settings(random, **settings)
        self.nodes: list[Node] = []
        self.lineage: set[str] = set()  # ids of all that the present store has, or had until it expired
        self.store = self._store()
        self.old: MemoryStore | None = None  # which was replaced, and lives on
        self.old_lineage: set[str] = set()
        self.copied: tuple[Any, set[str]] | None = None
        self.nodes = [Node(self, f"node{i}") for i in range(3)]
        self.subscribers = [self._subscriber(i) for i in range(6)]

    def _store(self) -> MemoryStore:
        store = self.parts.store(self.settings, lambda: self.time + self.skew * SECOND)
        store.listeners.append(lambda frame: self.announce(store, frame))
        return store

    def _subscriber(self, number: int) -> Subscriber:
        kind = self.random.choice(["ws", "ws", "sse", "poll"])
        return Subscriber(self, f"client{number}", kind, self.random.sample(CHANNELS, self.random.randint(1, 4)))

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def fail(self, what: str) -> None:
        self.faults.append(what)

    def partition(self, channel: str) -> int:
        return partition_of(channel, self.settings.partitions)

    def stored(self, store: MemoryStore, partition: int) -> set[str]:
        return {id for id in self._lineage(store) if self.records[id].partition == partition}

    def _lineage(self, store: MemoryStore) -> set[str]:
        return self.lineage if store is self.store else self.old_lineage

    def announce(self, store: MemoryStore, frame: Frame) -> None:
        message = frame.message
        self.published += 1
        self.records[message.id] = Published(
            self.published, message.id, message.channel, frame.partition, message.key, message.offset
        )  # fmt: skip
        self._lineage(store).add(message.id)
        for node in self.nodes:
            if node.linked and node.store is store and frame.partition in node.chain.followed:
                node.inbox.append(frame)

    # ---------------------------------------------------------------- what happens

    def publish(self, node: Node) -> None:
        r = self.random
        if not node.linked:
            return
        if self.records and r.random() < 0.05:
            again = r.choice(list(self.records.values()))
            draft = self._draft(again.channel, again.id, again.key) if again.id.startswith("m") else None
            if draft is not None and node.store.state.ids.find(draft, node.store.clock()) is not None:
                node.publish(draft)
                return
        channel = r.choice(CHANNELS)
        key = r.choice(["k1", "k2", "k3", "k4", None]) if channel[:3] in ("tab", "key") else None
        node.publish(self._draft(channel, f"m{self.published}", key))

    def _draft(self, channel: str, id: str, key: str | None) -> Draft:
        size = (int(id[1:]) * 7919 % 5) ** 3 * 12  # 0 to 768 bytes; the same for a repeat
        deleted = key is not None and int(id[1:]) % 4 == 0
        return Draft(channel, "e", b'"%b"' % (b"x" * size), id, key, deleted=deleted, idempotent=True)

    def step(self) -> None:
        r = self.random
        node = r.choice(self.nodes)
        seconds = [0, 0, 0, 0.001, 0.01, 1, 1, 2, 5, 20] if self.old is None else [0, 0.001, 0.01, 0.1, 1]
        self.time += int(r.choice(seconds) * SECOND) + r.randrange(3)
        if self.parts.tears and r.random() < 0.2:
            return self.tear(node)
        what = r.random()
        if what < 0.36:
            self.publish(node)
        elif what < 0.50:
            node.work()
        elif what < 0.60:
            self.work_a_little(node)
        elif what < 0.64 and node.inbox:
            if r.random() < 0.5:
                del node.inbox[r.randrange(len(node.inbox))]
            else:
                node.inbox.clear()
        elif what < 0.84:
            self.move(r.choice(self.subscribers))
        elif what < 0.94:
            self.trouble(node)
        else:
            self.store_trouble()
        self.inspect()
        return None

    def work_a_little(self, node: Node) -> None:
        r = self.random
        what = r.randrange(8)
        if what == 0:
            node.hear_acks()
        elif what == 1:
            node.receive(r.randint(1, 4))
        elif what == 2:
            node.read_page(r.randrange(100))
        elif what == 3:
            node.deliver_page(r.randrange(100))
        elif what == 4:
            node.check_due()
        elif what == 5 and node.linked:
            partition = r.randrange(self.settings.partitions)
            if partition in node.chain.followed and partition not in node.checking:
                node.tell(partition)
        elif what == 6 and node.checking:
            node.ask(r.choice(sorted(node.checking)))
        elif what == 7 and node.answers:
            node.answer(r.choice(sorted(node.answers)), live=r.random() < 0.5)

    def move(self, client: Subscriber) -> None:
        r = self.random
        if client.node is None:
            node = r.choice(self.nodes)
            if node.linked:
                for channel in client.channels:
                    if channel[:3] == "tab" and r.random() < 0.1:
                        client.take_snapshot(node, channel)
                client.connect(node)
        elif client.joining:
            client.join_some()
        elif r.random() < 0.15:
            client.leave()
        elif r.random() < 0.1:
            client.resubscribe(r.choice(client.channels))
        elif r.random() < 0.15:
            client.ping()
        else:
            limit = r.choice([1, 1500, 4000, 1 << 20])
            client.read(limit, lose=r.random() < 0.1, slow=r.random() < 0.3)

    def trouble(self, node: Node) -> None:
        r = self.random
        what = r.random()
        if what < 0.35:
            node.cut()
            if r.random() < 0.7:
                node.inbox.clear()
        elif what < 0.80:
            if not node.linked:
                node.link()
        elif what < 0.92:
            partition = r.randrange(self.settings.partitions)
            if not self.parts.tears or node.settled:  # else the only witness of the old store's last offset may go
                node.unfollow(partition)
        elif what < 0.97:
            self.store.sweep()
        elif not self.parts.tears or node.settled:
            self.reboot(node)

    def reboot(self, node: Node) -> None:
        for client in self.subscribers:
            if client.node is node:
                client.away()
        node.boot()

    def tear(self, node: Node) -> None:
        """A failover by hand: first the store is replaced while it lives on, then one node after another moves."""
        r = self.random
        if self.old is None:
            if r.random() < 0.1:
                self.old, self.old_lineage, skew = self.store, self.lineage, self.skew
                self.old.clock = lambda: self.time + skew * SECOND
                state, self.lineage = self.copy()
                self.skew = r.choice(SKEW)
                self.store = self._store()
                self.store.state = state
        elif node.store is self.old and r.random() < 0.4:
            node.cut()
            node.inbox.clear()
            node.store = self.store
            node.link()
        elif r.random() < 0.05:
            self.mend()

    def mend(self) -> None:
        """The old store takes no more writes: whoever is still with it finds the new one."""
        for node in self.nodes:
            if node.store is self.old:
                node.cut()
                node.inbox.clear()
                node.store = self.store
        self.old = None

    def store_trouble(self) -> None:
        self.mend()
        r = self.random
        what = r.random()
        if what < 0.45:
            self.copied = self.copy()
        elif what < 0.70:
            self.time += int(r.choice([300, 700, 1200, 90_000]) * SECOND)
        elif what < 0.85 and self.copied is not None:
            state, self.lineage = self.copied
            self.copied = None
            self.skew = r.choice(SKEW)
            self.time += r.choice([4, 5, 10]) * SECOND  # clocks differ by less than a failover takes
            self.replace(state)
            lost = r.choice([0, 0, 0, 1, 3])  # nodes that the same accident takes
            for node in self.nodes[:lost]:
                self.reboot(node)
        elif what < 0.97:
            self.replace(self.store.state)
        else:
            self.copied, self.lineage = None, set()
            self.store.begin()
            self.link_some()

    def copy(self) -> tuple[Any, set[str]]:
        """The store's state as a replica may have it; what is immutable is shared."""
        state = self.store.state
        memo: dict[int, Any] = {}
        for log in state.logs.values():
            memo[id(log.policy)] = log.policy
            for message in [*(e.message for e in log.entries), *(k.message for k in log.keys.values())]:
                memo[id(message)] = message
        return copy.deepcopy(state, memo), set(self.lineage)

    def replace(self, state: Any) -> None:
        """Another process serves the store: from a copy, or after a clean restart from all there was."""
        self.store.state = state
        self.store.history = new_id()
        self.link_some()

    def link_some(self) -> None:
        """Most nodes lose their link to a store that was replaced, some do not notice."""
        for node in self.nodes:
            if self.random.random() < 0.7:
                node.cut()
                if self.random.random() < 0.7:
                    node.inbox.clear()

    # ---------------------------------------------------------------- what must hold

    def inspect(self) -> None:
        for node in self.nodes:
            invariants.bounds(self, node)
            invariants.recent(self, node)
        invariants.store(self)

    def settle(self) -> None:
        """Everybody connects, everything is checked, all is read; then nothing may have been missed silently."""
        self.mend()
        for _ in range(4):
            for node in self.nodes:
                node.link()
            self.time += int(self.settings.check_interval * SECOND) + SECOND
            for client in self.subscribers:
                if client.node is None:
                    client.connect(self.random.choice(self.nodes))
            self.drain()
        self.inspect()
        for client in self.subscribers:
            invariants.missed(self, client)
        self.part()

    def drain(self) -> None:
        for _ in range(400):
            busy = False
            for node in self.nodes:
                node.work()
            for client in self.subscribers:
                if client.comes_back:
                    client.connect(self.random.choice(self.nodes))
                while client.joining:
                    client.join_some()
                if client.session is None or client.node is None:
                    continue
                for channel in client.channels:
                    if channel not in client.session.channels:
                        client.resubscribe(channel)
                busy |= bool(client.session.outbox or client.session.behind or client.unsent)
                client.read(1 << 20)
                busy |= client.comes_back
            if not busy and not any(node.inbox or node.wants or node.pages for node in self.nodes):
                return
        self.fail("what is owed is never delivered: " + "; ".join(self._stuck()))

    def _stuck(self) -> list[str]:
        return [
            f"{client.name} ({client.kind}) behind in {channel.name} since {behind.since}, lagged {session.lagged}"
            f" with {len(session.outbox)} items, page {behind.page}, waits {behind.waiting},"
            f" whole {channel.partition.whole}"
            for client in self.subscribers if (session := client.session) is not None
            for channel, behind in session.behind.items()
        ]

    def part(self) -> None:
        """Everybody leaves: nothing may stay behind."""
        for client in self.subscribers:
            client.leave()
        for node in self.nodes:
            hub = node.hub
            parts = list(hub.partitions.values())
            for part in parts:
                node.unfollow(part.number)
            channels = [name for part in parts for name in part.channels]
            left = (hub.sessions, channels, hub.partitions, hub.budget.used, hub.recent.bytes)
            if any(left):
                self.fail(f"{node.name} holds {left} when everybody has left")


def make_settings(random: Random, **fixed: Any) -> Settings:
    """Settings so small that every bound is met within a few steps."""
    recent = random.choice([0, 3000, 6000, 20_000])
    chosen: dict[str, Any] = {
        "channels": {
            "cat": Policy(history_size=6, history_ttl=900),
            "big": Policy(history_size=100, history_bytes=5000, history_ttl=900),
            "tab": Policy(history_size=4, history_ttl=900, keyed=True, key_ttl=600, max_keys=3, slow="latest"),
            "key": Policy(history_size=6, history_ttl=900, keyed=True, key_ttl=300, max_keys=3),
            "few": Policy(history_size=3, history_ttl=60),
        },
        "partitions": random.choice([1, 2, 3]),
        "store_bytes": random.choice([15_000, 30_000, 1 << 20]),
        "recent_bytes": recent,
        "memory_budget": recent + random.choice([8000, 20_000, 1 << 20]),
        "outbox_bytes": random.choice([1000, 4000, 10_000]),
        "outbox_items": random.choice([1, 3, 20]),
        "page_messages": random.choice([1, 3, 100]),
        "page_bytes": random.choice([1000, 3000, 100_000]),
        "check_interval": 30.0,
        "idempotency_window": 300.0,
    }
    return Settings(**chosen | fixed)


def run(seed: int, parts: Parts | None = None, steps: int = 400, **settings: Any) -> World:
    """One life of a world; it stops at the first fault."""
    world = World(Random(seed), parts, **settings)
    for _ in range(steps):
        world.step()
        if world.faults:
            return world
    world.settle()
    return world
