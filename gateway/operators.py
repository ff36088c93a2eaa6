"""Operators who have shown an API key: a table of the store, so every node knows them, and logging out ends them."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

import msgspec

from gateway.brokers.base import Broker
from gateway.identity import Identity
from gateway.message import Draft, new_id

TABLE = "ringcast:operators"
LASTS = 8 * 3600.0  # seconds; then the key has to be shown again


class _Entry(msgspec.Struct, frozen=True):
    principal: str  # of the API key
    until: float  # seconds since 1970


class Operators:
    """Makes what the console's cookie holds, and tells whose it is.

    That is a random token, of which the store has the SHA-256 alone: whoever reads the store, or knows how the gateway
    is configured, still is no operator.
    """

    def __init__(self, broker: Broker, clock: Callable[[], float] = time.time) -> None:
        self._broker = broker
        self._clock = clock

    async def begin(self, principal: str) -> str:
        """A token that stands for `principal` for `LASTS` seconds. Raises what `Broker.publish` raises."""
        token = secrets.token_urlsafe(32)
        entry = msgspec.json.encode(_Entry(principal, self._clock() + LASTS))
        await self._broker.publish(Draft(TABLE, "begun", entry, new_id(), key=_key(token), ttl=LASTS))
        return token

    async def end(self, token: str) -> None:
        """From now on `token` stands for nobody. Raises what `Broker.publish` raises."""
        if await self.find(token) is not None:
            await self._broker.publish(Draft(TABLE, "ended", b"null", new_id(), key=_key(token), deleted=True))

    async def find(self, token: str) -> Identity | None:
        """Whom `token` stands for; None where that is nobody, or nobody any more. Raises what a snapshot raises."""
        key = _key(token)
        for message in (await self._broker.snapshot(TABLE)).messages:
            if message.key == key and not message.deleted:
                entry = msgspec.json.decode(message.data, type=_Entry)
                if entry.until > self._clock():
                    return operator(entry.principal, entry.until)
        return None


def operator(principal: str, expires: float | None = None) -> Identity:
    """Who may do what an API key may, and look at the gateway's own table of nodes."""
    return Identity(principal, read=("*",), publish=("*",), expires=expires, server=True, operator=True)


def _key(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
