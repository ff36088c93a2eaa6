"""A hub by itself: a test answers the pages it asks for and reads what its sessions are sent."""

from __future__ import annotations

from typing import Any

from gateway.brokers.base import Page
from gateway.hub import Hub
from gateway.message import Control, Message
from gateway.metrics import Metrics
from gateway.session import Calls, Session
from gateway.settings import Policy, Settings

P, Q = 1, 2  # partitions: those of topic: and tab:, and that of far:
SIZE = 512 + 2 * 100  # what a message here counts


class Node:
    """A hub, the pages it asks for, and sessions as their clients see them."""

    def __init__(self, **settings: Any) -> None:
        policies = {"tab": Policy(keyed=True, slow="latest")}
        self.settings = Settings(channels=policies, **{"outbox_bytes": 100 * SIZE, "outbox_items": 50} | settings)
        self.wants: list[tuple[str, int]] = []
        self.hub = Hub(self.settings, Metrics(), lambda channel, since: self.wants.append((channel, since)))
        for partition in (P, Q):
            self.hub.watermark(partition, 100)

    def session(self, *, welcome: bool = True) -> Session:
        settings, carrier = self.settings, Calls(lambda: None)
        session = Session("s", self.hub.budget, settings.outbox_bytes, settings.outbox_items, carrier)
        session.welcome = {"session": "s"} if welcome else None
        return session

    def join(self, *names: str, since: int | None = None, **options: Any) -> Session:
        """An open session, at its live end unless `since` says otherwise; what it was told so far is read."""
        session = self.session()
        for name in names:
            self.hub.join(session, name, partition(name), since, **options)
        self.hub.welcome(session)
        return session

    def says(self, *offsets: int, channel: str = "topic:a", key: str | None = None) -> None:
        for offset in offsets:
            self.hub.message(partition(channel), message(offset, channel, key))

    def reads(self, session: Session, limit: int = 1 << 20) -> list[Any]:
        """What one write brings the client: offsets of messages, bodies of other frames without their pings."""
        items = session.take(limit)
        session.sent()
        self.hub.pump(session)
        return seen(items)

    def reads_all(self, session: Session) -> list[Any]:
        found: list[Any] = []
        while some := self.reads(session):
            found += some
        return found

    def answers(self, page: Page, channel: str = "topic:a") -> None:
        assert (channel, page.since) in self.wants
        self.wants.remove((channel, page.since))
        self.hub.on_page(channel, page.since, page)


def partition(channel: str) -> int:
    return Q if channel.startswith("far:") else P


def message(offset: int, channel: str = "topic:a", key: str | None = None) -> Message:
    return Message(channel, offset, f"m{offset}", "e", b'"' + b"x" * 98 + b'"', 0, key)


def seen(items: list[Message | Control]) -> list[Any]:
    return [
        item.offset if isinstance(item, Message) else item.body
        for item in items if isinstance(item, Message) or item.kind != "ping"
    ]  # fmt: skip


def page(
    since: int, *offsets: int, top: int, shown: bool = True, floor: int = 0, more: bool = False, name: str = "topic:a"
) -> Page:
    return Page(since, shown, floor, top, [message(offset, name) for offset in offsets], more)


def opened(name: str, offset: int, recovered: bool | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"channel": name, "offset": offset}
    return entry if recovered is None else entry | {"recovered": recovered}


def welcome(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"type": "welcome", "session": "s", "channels": list(entries)}


def reset(reason: str, offset: int, name: str = "topic:a") -> dict[str, Any]:
    return {"type": "reset", "channel": name, "reason": reason, "offset": offset}
