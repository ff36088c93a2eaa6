"""Tickets: what stands in for a token in a URL, where a token must not be.

A ticket is `rct1.<body>.<mac>`: a JSON array and its HMAC-SHA256, each in unpadded base64url. The prefix, the key
(derived for tickets alone) and the signed bytes (prefix included) keep tickets and JWTs apart: neither is ever
accepted as the other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec

from gateway.brokers.base import Receipt
from gateway.errors import Problem
from gateway.identity import Identity
from gateway.keys import ApiKeys
from gateway.message import Draft
from gateway.settings import ConfigError, Settings

MAX_TICKET = 4 << 10  # bytes; a URL has to hold it beside channels and cursor
TICKETS = "ringcast:tickets"

Spend = Callable[[str, float], Awaitable[bool]]
"""Called with a ticket's id and the seconds it has left; true the first time, on whichever node that is."""

_SHAPE = re.compile(r"rct1\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})\Z")


class _Body(msgspec.Struct, array_like=True, frozen=True):
    use: Literal["connect", "stream"]
    jti: str
    until: float  # seconds since 1970: how long the ticket is good
    principal: str
    subject: str | None
    read: tuple[str, ...]
    publish: tuple[str, ...]
    channels: tuple[str, ...] | None
    expires: float | None  # of the identity
    issued: float | None = None  # when the token was, that the ticket was made for
    info: str | None = None


class Ticket(msgspec.Struct, frozen=True):
    """A new ticket; `text` goes into the URL as `?ticket=`."""

    text: str
    expires: float  # seconds since 1970

    def __repr__(self) -> str:
        return f"<Ticket until {self.expires:.0f}>"


class NotATicket(Exception):
    """The ticket is not one of ours, or was used before. Which of them is for the log alone."""


class Tickets:
    """Makes tickets and accepts them.

    All nodes with the same jwt_hmac_key, or else the same api_keys, accept each other's tickets. Where neither is
    set (no keys at all, or none but public ones), the signing key is random and tickets live in this process only.
    A ticket never carries the rights of a server, whoever asked for it.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        """Raises ConfigError when ids are forgotten while a ticket is still good."""
        if settings.ticket_ttl > settings.idempotency_window:
            raise ConfigError(
                f"ticket_ttl ({settings.ticket_ttl:g}s) must not be above idempotency_window "
                f"({settings.idempotency_window:g}s): a ticket could be used again once its use is forgotten"
            )
        self._settings = settings
        self._clock = clock
        self._key = _derive(settings)

    def connect(self, identity: Identity) -> Ticket:
        """A ticket for one connection as `identity`, good for `ticket_ttl`; the session lasts as `identity` does."""
        until = self._until(identity, self._settings.ticket_ttl)
        return self._make("connect", identity, until, identity.expires)

    def stream(self, identity: Identity, channels: Sequence[str], ttl: float | None = None) -> Ticket:
        """A ticket to read `channels` alone, as often as wanted, for `ttl` seconds (by default stream_ticket_ttl).

        It ends with `identity` at the latest, and grants no publishing: it sits in an EventSource's URL for long.
        Raises Problem("forbidden") for a channel that `identity` may not read.
        """
        for channel in channels:
            identity.check_read(channel)
        until = self._until(identity, self._settings.stream_ticket_ttl if ttl is None else ttl)
        bound = Identity(
            identity.principal, identity.subject, channels=tuple(channels), issued=identity.issued, info=identity.info
        )  # fmt: skip
        return self._make("stream", bound, until, until)

    async def redeem(self, ticket: str, spend: Spend) -> Identity:
        """The identity that `ticket` stands for; a connect ticket is spent by it.

        Raises NotATicket, Problem("token_expired"), and what `spend` raises when it cannot tell.
        """
        found = self.begin(ticket, spend)
        return found if isinstance(found, Identity) else await found

    def begin(self, ticket: str, spend: Spend) -> Identity | Awaitable[Identity]:
        """What `redeem` answers, at once for a stream ticket. Raises as it does."""
        body = self._open(ticket)
        left = body.until - self._clock()
        if left <= 0:
            raise Problem("token_expired", "The ticket has expired: get a new one")
        identity = Identity(
            body.principal, body.subject, body.read, body.publish, body.expires, channels=body.channels,
            issued=body.issued, info=None if body.info is None else body.info.encode(),
        )  # fmt: skip
        return _spent(identity, spend(body.jti, left)) if body.use == "connect" else identity

    def _until(self, identity: Identity, ttl: float) -> float:
        until = self._clock() + ttl
        return until if identity.expires is None else min(until, identity.expires)

    def _make(
        self, use: Literal["connect", "stream"], identity: Identity, until: float, expires: float | None
    ) -> Ticket:
        body = _Body(
            use, secrets.token_urlsafe(16), until, identity.principal, identity.subject, identity.read,
            identity.publish, identity.channels, expires, identity.issued,
            None if identity.info is None else identity.info.decode(),
        )  # fmt: skip
        signed = b"rct1." + _encode(msgspec.json.encode(body))
        text = b"%b.%b" % (signed, _encode(self._mac(signed)))
        if len(text) > MAX_TICKET:
            raise Problem(
                "too_large",
                f"The ticket would have {len(text)} bytes and a URL takes {MAX_TICKET}: name fewer channels, "
                "or give the token fewer patterns by a '*'",
            )
        return Ticket(text.decode(), until)

    def _open(self, ticket: str) -> _Body:
        match = _SHAPE.match(ticket) if len(ticket) <= MAX_TICKET else None
        if match is None:
            raise NotATicket("shape")
        signed, _, mac = ticket.encode().rpartition(b".")
        # Compared as text, so that the spare bits of the last character do not give one ticket several spellings.
        if not hmac.compare_digest(mac, _encode(self._mac(signed))):
            raise NotATicket("signature")
        body = match[1]
        return _decoder.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))

    def _mac(self, signed: bytes) -> bytes:
        return hmac.digest(self._key, signed, "sha256")


_decoder = msgspec.json.Decoder(_Body)


def _encode(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _derive(settings: Settings) -> bytes:
    """The signing key: HKDF (RFC 5869) with SHA-256 of what all nodes share."""
    if settings.jwt_hmac_key is not None:
        shared = settings.jwt_hmac_key.encode()
    elif settings.api_keys:
        # Digests, in order: the same key however it is written, and wherever in the list.
        shared = b"".join(sorted(ApiKeys(settings.api_keys).digests))
    else:
        return secrets.token_bytes(hashlib.sha256().digest_size)
    extracted = hmac.digest(b"ringcast ticket v1", shared, "sha256")
    return hmac.digest(extracted, b"sign\x01", "sha256")


async def _spent(identity: Identity, spending: Awaitable[bool]) -> Identity:
    if not await spending:
        raise NotATicket("spent")
    return identity


async def unspendable(jti: str, left: float) -> bool:
    """Stands where no broker was given: a mistake of the wiring, never an answer to a client."""
    raise RuntimeError("a connect ticket came before Authenticator.spend was set")


def spend_by(publish: Callable[[Draft], Awaitable[Receipt]]) -> Spend:
    """Spend tickets through a broker's `publish`, whose idempotency is the one atomic step that all nodes share.

    The ticket's id becomes the id of a message of a channel that nobody reads: the first publish stores it, every
    other one is a duplicate.
    """

    async def spend(jti: str, left: float) -> bool:
        receipt = await publish(Draft(TICKETS, "spent", b"null", jti, principal="ringcast", idempotent=True))
        return not receipt.duplicate

    return spend
