"""A node's part in revoking tokens: it hears of revocations, ends the sessions they concern, and tells of new ones."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from gateway.brokers.base import Receipt
from gateway.errors import UNAUTHORISED, Problem
from gateway.follow import AGAIN, Follower
from gateway.message import Draft, Message, new_id
from gateway.revocations import REVOKED, Revocation, Revocations

if TYPE_CHECKING:
    from gateway.node import Node

CHANNEL = "ringcast:revocations"
SPREAD = 5.0  # seconds within which nodes tell the store of what it lost, so that few tell the same

log = logging.getLogger("ringcast.revocations")

_decode = msgspec.json.Decoder(Revocation).decode


class Revoker:
    """Follows the channel from the node's start on; until it has heard all of it once, nobody is let in for a user."""

    def __init__(self, node: Node) -> None:
        self.table = Revocations(known=False)
        self._node = node
        self._ear = Follower(node, CHANNEL, self._began, self._heard)
        self._lost: set[str] = set()  # users whose revocation the store lost
        self._lose = asyncio.Event()

    async def run(self) -> None:
        """Ends only by cancellation."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ear.run(), name="revocations: hear")
            tasks.create_task(self._restore(), name="revocations: restore")

    async def revoke(self, user: str, before: float) -> Receipt:
        """Refuse the user's tokens that were issued before: here from now on, on every other node once it hears of it.

        What is revoked stays so: an earlier moment than one that was given before is a duplicate. Raises Problem
        `too_many_keys` and those of `Broker.publish`.
        """
        settings = self._node.settings
        if len(self.table) >= settings.max_revocations and self.table.get(user) is None:
            raise Problem(
                "too_many_keys",
                f"There are {len(self.table)} revocations, as many as may be: raise max_revocations, or lower "
                "revocation_ttl to what your tokens live",
            )
        revocation = Revocation(before, time.time() + settings.revocation_ttl)
        receipt = await self._tell(user, revocation)
        self.table.put(user, revocation)  # whoever was answered need not wait for the ear
        return receipt

    async def _tell(self, user: str, revocation: Revocation) -> Receipt:
        draft = Draft(
            CHANNEL, "revoked", msgspec.json.encode(revocation), new_id(), key=user,
            version=(round(revocation.before * 1e6),), ttl=max(1.0, revocation.until - time.time()),
        )  # fmt: skip
        try:
            return await self._node.publish(draft)
        except Problem as problem:
            if problem.code != "stale_version":
                raise
            return Receipt(CHANNEL, problem.facts["current"]["offset"], draft.id, duplicate=True)

    # ---------------------------------------------------------------- hearing

    def _began(self, messages: list[Message]) -> None:
        held = {message.key: found.before for message in messages if message.key and (found := self._take(message))}
        self._lost = set(self.table.compare(held))
        if self._lost:
            log.warning("the store has lost %d revocations: it is told of them again", len(self._lost))
            self._lose.set()
        self.table.known.set()
        self._end(self._node.users)

    def _heard(self, message: Message) -> None:
        if message.key is None:
            return
        if message.deleted:
            self.table.drop(message.key)
        elif self._take(message) is not None:
            self._end((message.key,))

    def _take(self, message: Message) -> Revocation | None:
        assert message.key is not None
        try:
            revocation = _decode(message.data)
        except msgspec.DecodeError as error:
            log.error("a revocation cannot be read by this version, and does not hold here: %s", error)
            return None
        self.table.put(message.key, revocation)
        return revocation

    def _end(self, users: Iterable[str]) -> None:
        for user in list(users):
            for session in self._node.users.of(user):
                if self.table.refuses(session.identity):
                    self._node.goodbye(session, UNAUTHORISED, REVOKED)

    async def _restore(self) -> None:
        """Tell the store of what it lost. Whoever is home begins; the others tell what is still missing then."""
        while True:
            await self._lose.wait()
            self._lose.clear()
            if not self._node.cluster.is_home(self._node.partition(CHANNEL)):
                await asyncio.sleep(random.uniform(SPREAD / 5, SPREAD))  # noqa: S311 - spreads, hides nothing
            while self._lost:
                user = self._lost.pop()
                revocation = self.table.get(user)
                try:
                    if revocation is not None:
                        await self._tell(user, revocation)
                except Problem as problem:
                    log.debug("the store does not take a revocation yet: %s", problem)
                    self._lost.add(user)
                    await asyncio.sleep(AGAIN)
