"""Tokens that are refused before their time: of a user, all that were issued before some moment.

Every node holds the whole table, so that it costs no lookup when a client connects, and a token stays refused while the
store is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec

from gateway.identity import Identity

REVOKED = "The token was revoked: log in again and come back with a new one"


class Revocation(msgspec.Struct, frozen=True):
    """Times in seconds since 1970."""

    before: float  # tokens that were issued before this are refused
    until: float  # after which there are no such tokens any more


class Revocations:
    """Whose tokens are refused, as far as this node has heard; no I/O. `known` is set once it has heard of all."""

    def __init__(self, *, known: bool = True) -> None:
        self.known = asyncio.Event()
        if known:
            self.known.set()
        self._by_user: dict[str, Revocation] = {}

    def __len__(self) -> int:
        return len(self._by_user)

    def refuses(self, identity: Identity) -> bool:
        """Whether the token behind `identity` was revoked. One that does not say when it was issued counts as old."""
        if not self._by_user or identity.subject is None:
            return False
        found = self._by_user.get(identity.subject)
        if found is None or found.until <= time.time():
            return False
        return identity.issued is None or identity.issued < found.before

    def get(self, user: str) -> Revocation | None:
        return self._by_user.get(user)

    def put(self, user: str, revocation: Revocation) -> None:
        """Take one in, beside what is known."""
        known = self._by_user.get(user, revocation)
        self._by_user[user] = Revocation(max(known.before, revocation.before), max(known.until, revocation.until))

    def drop(self, user: str) -> None:
        self._by_user.pop(user, None)

    def compare(self, held: Mapping[str, float]) -> list[str]:
        """Forget what is over; returns the users of whom the store, which `held` this by user, knows less."""
        now = time.time()
        for user in [user for user, known in self._by_user.items() if known.until <= now]:
            del self._by_user[user]
        return [user for user, known in self._by_user.items() if held.get(user, 0.0) < known.before]
