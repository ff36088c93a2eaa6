"""What presence hears: many keyed channels through one session, each from a snapshot on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from gateway.brokers.base import Snapshot
from gateway.errors import Problem
from gateway.follow import AGAIN
from gateway.identity import Identity
from gateway.message import Message
from gateway.session import Calls, Session

if TYPE_CHECKING:
    from gateway.node import Node

log = logging.getLogger("ringcast.presence")

TOGETHER = 32  # snapshots that are read at a time


class Ear:
    """`gateway.follow.Follower` for channels that come and go by the thousand, which a task each would be too many for.

    `snapshot(channel, messages)` begins each channel, and begins it again where something of it was missed; then
    `message(message)` follows. `settled()` is called when all that came has been told and no channel is behind: only
    then what was told is the state at one position of each partition.
    """

    def __init__(
        self, node: Node, snapshot: Callable[[str, list[Message]], None], message: Callable[[Message], None],
        settled: Callable[[], None],
    ) -> None:  # fmt: skip
        self._node = node
        self._snapshot, self._message, self._settled = snapshot, message, settled
        self._missing: dict[str, None] = {}  # wanted, and not followed yet
        self._joined: dict[str, int] = {}  # followed, and the offset of the snapshot
        self._session: Session | None = None
        self._wake = asyncio.Event()
        self._cut = self._complained = False

    def __contains__(self, channel: str) -> bool:
        return channel in self._joined or channel in self._missing

    def add(self, channel: str) -> None:
        """Follow a channel, or begin it again."""
        self.drop(channel)
        self._missing[channel] = None
        self._wake.set()

    def drop(self, channel: str) -> None:
        self._missing.pop(channel, None)
        if self._joined.pop(channel, None) is not None and self._session is not None:
            self._node.hub.unsubscribe(self._session, channel)

    def wake(self) -> None:
        """Have `settled` called again, as soon as it may be."""
        self._wake.set()

    def reached(self, channel: str) -> int:
        """The offset up to which everything of the channel was told, once it is settled."""
        session = self._session
        return 0 if session is None or channel not in self._joined else session.position(session.channels[channel])

    async def run(self) -> None:
        """Listen; ends only by cancellation."""
        while True:
            await self._listen()

    async def _listen(self) -> None:
        """With one session, until that is cut."""
        node, self._cut = self._node, False
        session = self._session = node.session(Identity("ringcast"), Calls(self._wake.set, self._abort), welcome=False)
        node.own.add(session)
        node.hub.welcome(session)
        try:
            while not self._cut:
                self._take(session)
                if session.outbox:
                    continue
                if self._missing:
                    await self._join(session, list(islice(self._missing, TOGETHER)))
                    continue
                if not session.behind:
                    self._settled()
                await self._wake.wait()
                self._wake.clear()
        finally:
            self._session = None
            self._missing.update(dict.fromkeys(self._joined))
            self._joined.clear()
            node.own.discard(session)
            node.leave(session)

    def _take(self, session: Session) -> None:
        for item in session.take():
            if isinstance(item, Message):
                if item.offset > self._joined.get(item.channel, item.offset):
                    self._message(item)
            elif item.kind == "reset" and item.channel in self._joined:
                self.add(item.channel)
        self._node.sent(session)

    async def _join(self, session: Session, channels: list[str]) -> None:
        node = self._node
        try:
            async with asyncio.timeout(node.settings.open_within):
                partitions = {node.broker.partition(channel) for channel in channels}
                await node.interest.follow(partitions)
                read = await asyncio.gather(*(self._read(channel) for channel in channels))
                await node.interest.follow(partitions)
        except (Problem, TimeoutError) as problem:
            log.log(logging.DEBUG if self._complained else logging.WARNING, "presence waits for the store: %s", problem)
            self._complained = True
            await asyncio.sleep(AGAIN)
            return
        missed = [found for found in read if isinstance(found, Problem)]
        for channel, found in zip(channels, read, strict=True):
            if isinstance(found, Snapshot) and channel in self._missing and not self._cut:
                del self._missing[channel]
                self._joined[channel] = found.offset
                node.hub.join(session, channel, node.broker.partition(channel), snapshot=Snapshot([], found.offset))
                self._snapshot(channel, found.messages)
        node.hub.welcome(session)
        self._complained = bool(missed)
        if missed:
            log.warning("presence waits for the store: %s", missed[0])
            await asyncio.sleep(AGAIN)

    async def _read(self, channel: str) -> Snapshot | Problem:
        try:
            return await self._node.broker.snapshot(channel)
        except Problem as problem:
            return problem

    def _abort(self) -> None:
        self._cut = True
        self._wake.set()
