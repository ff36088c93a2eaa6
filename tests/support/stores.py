"""A memory store with a clock that a test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.brokers.base import Page
from gateway.brokers.memory_store import MemoryStore
from gateway.message import Draft, new_id
from gateway.settings import Policy, Settings

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
DAY = 24 * 3600


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


POLICIES = {
    "log": Policy(history_size=5, history_ttl=100),
    "big": Policy(history_size=1000, history_bytes=2000, history_ttl=100),
    "tab": Policy(history_size=5, history_ttl=100, keyed=True, key_ttl=50, max_keys=3, slow="latest"),
    "key": Policy(history_size=5, history_ttl=100, keyed=True, key_ttl=50, max_keys=3),
    "old": Policy(history_size=2, history_ttl=30 * DAY, keyed=True, key_ttl=50, max_keys=3, slow="latest"),
}


def made(clock: Callable[[], int], **settings: Any) -> MemoryStore:
    return MemoryStore(Settings(channels=POLICIES, partitions=1, **settings), clock)


def publish(store: MemoryStore, channel: str = "log:a", key: str | None = None, **draft: Any) -> int:
    given: dict[str, Any] = {"event": "e", "data": b"1", "id": new_id()} | draft
    return store.publish(Draft(channel, key=key, **given)).offset


def take_over(store: MemoryStore, state: Any) -> str:
    """Another process serves from `state`; returns the history of the one before."""
    before, store.state, store.history = store.history, state, new_id()
    return before


def offsets(page: Page) -> list[int]:
    return [message.offset for message in page.messages]


def read(store: MemoryStore, since: int, channel: str = "log:a", limit: int = 100) -> Page:
    return store.read(channel, since, limit)


def recount(store: MemoryStore) -> int:
    size = 0
    for log in store.state.logs.values():
        size += 700 + sum(e.message.size for e in log.entries) + sum(300 + k.message.size for k in log.keys.values())
    return size
