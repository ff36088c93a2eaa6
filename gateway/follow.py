"""The gateway's own ear: one keyed channel followed as any session follows it, a snapshot and then what comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.brokers.base import Snapshot
from gateway.errors import Problem
from gateway.message import Message
from gateway.session import Calls, Session

if TYPE_CHECKING:
    from gateway.node import Node

SOON, AGAIN = 0.02, 0.5  # seconds between two attempts while the store is away: at first, and then at most

log = logging.getLogger("ringcast.follow")


class Follower:
    """Tells what a channel holds and what comes, by plain calls in the order of offsets.

    `snapshot(messages)` begins: the newest value of each key that is neither deleted nor expired. `message(message)`
    follows for each later one, keyed or not. After a cut, after a loss that a reset tells and after the store was away
    there is a snapshot again; what it does not name is gone, or the store lost it. `idle()` is called when all that
    came has been told; it returns until when it may wait (a time of the loop; None: until something comes).
    """

    def __init__(
        self, node: Node, channel: str, snapshot: Callable[[list[Message]], None], message: Callable[[Message], None],
        *, idle: Callable[[], float | None] = lambda: None, away: Callable[[Problem], None] | None = None,
    ) -> None:  # fmt: skip
        """`away` is told of every attempt that the store did not answer; without it, the log is, once each time."""
        self.channel = channel
        self._node = node
        self._snapshot, self._message, self._idle = snapshot, message, idle
        self._away = away or self._complain
        self._wake = asyncio.Event()
        self._cut = False
        self._complained = True  # that the store is not there yet is the broker's to tell

    async def run(self) -> None:
        """Follow the channel; ends only by cancellation."""
        wait = SOON
        while True:
            try:
                await self._follow()
                wait = SOON
            except Problem as problem:
                self._away(problem)
                self._idle()
                await asyncio.sleep(wait)
                wait = min(2 * wait, AGAIN)

    async def _follow(self) -> None:
        """From a snapshot on, until the session is cut or misses something. Raises Problem."""
        node, self._cut = self._node, False
        session = node.own_session(Calls(self._wake.set, self._abort))
        try:
            self._snapshot((await self._join(session)).messages)
            self._complained = False
            while not self._cut:
                for item in session.take():
                    if isinstance(item, Message):
                        self._message(item)
                    elif item.kind == "reset":
                        return
                node.sent(session)
                if not session.outbox:
                    await self._until(self._idle())
        finally:
            node.leave(session)

    async def _join(self, session: Session) -> Snapshot:
        """What a session's snapshot is, but of any size: it is read once, and no client waits to be sent it."""
        node, partition = self._node, self._node.broker.partition(self.channel)
        try:
            async with asyncio.timeout(node.settings.open_within):
                await node.interest.follow({partition})
                snapshot = await node.broker.snapshot(self.channel)
                await node.interest.follow({partition})
        except TimeoutError:
            raise Problem("unavailable", "The store does not answer: try again soon", retry_after=2) from None
        node.hub.join(session, self.channel, partition, snapshot=Snapshot([], snapshot.offset))
        node.hub.welcome(session)
        return snapshot

    async def _until(self, at: float | None) -> None:
        try:
            async with asyncio.timeout_at(at):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _abort(self) -> None:
        self._cut = True
        self._wake.set()

    def _complain(self, problem: Problem) -> None:
        log.log(logging.DEBUG if self._complained else logging.WARNING, "%s is not heard: %s", self.channel, problem)
        self._complained = True
