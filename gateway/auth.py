"""Who is speaking: turns what a request presents into an Identity, or refuses it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache

import msgspec

from gateway.errors import Problem
from gateway.identity import ANONYMOUS, Identity, reserved
from gateway.keys import ApiKeys
from gateway.limits import Limits
from gateway.operators import operator
from gateway.origin import Origins, host_is_loopback, is_loopback, own_origin
from gateway.revocations import REVOKED, Revocations
from gateway.settings import Settings
from gateway.tickets import NotATicket, Spend, Tickets, unspendable
from gateway.tokens import NotGenuine, Tokens

__all__ = ["Authenticator", "Credentials", "Identity", "is_open", "reserved"]

log = logging.getLogger("ringcast.auth")

FindOperator = Callable[[str], Awaitable[Identity | None]]

SUBPROTOCOL = "bearer."
MAX_TOKEN = 8 << 10  # bytes
REFUSED = "The credentials are not accepted: present a valid token, ticket or API key"


class Credentials(msgspec.Struct):
    """What a request presents, as it came; `origin`, `host`, `authorization`, `fetch_site` are the headers' values."""

    address: str  # the client's, from Limits.address
    authorization: str | None = None
    subprotocols: Sequence[str] = ()
    token: str | None = None  # of a connect frame
    ticket: str | None = None  # `?ticket=`
    query_token: str | None = None  # `?token=`
    cookies: Mapping[str, str] = {}
    operator: str | None = None  # the console's cookie; "" where the console asks without, None where it does not ask
    origin: str | None = None
    host: str | None = None
    scheme: str = "http"
    fetch_site: str | None = None  # Sec-Fetch-Site
    websocket: bool = False

    def __repr__(self) -> str:
        """Which kinds were presented, never what."""
        kinds = ("authorization", "subprotocols", "token", "ticket", "query_token", "cookies", "operator")
        return f"<Credentials from {self.address}: {', '.join(k for k in kinds if getattr(self, k)) or 'nothing'}>"


class Authenticator:
    """Decides who a request speaks for.

    `spend` makes connect tickets good for one use (see tickets.spend_by); it must be set before the first comes.
    `revocations` is a node's table of what was revoked: until that is known, whoever comes for a user waits.
    """

    def __init__(
        self, settings: Settings, *, limits: Limits | None = None, spend: Spend = unspendable,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """Take all keys. Raises ConfigError for one that cannot work."""
        self.open = is_open(settings)
        self.limits = limits if limits is not None else Limits(settings)
        self.tickets = Tickets(settings, clock)
        self.spend = spend
        self.operators: FindOperator = nobody
        self.revocations = Revocations()
        self._settings = settings
        self._api_keys = ApiKeys(settings.api_keys)
        self._tokens = Tokens(settings, clock)
        self._origins = Origins(settings.allowed_origins)

    async def authenticate(self, credentials: Credentials) -> Identity | None:
        """Who `credentials` speak for; None when nothing is presented (a WebSocket may send a connect frame yet).

        A cookie counts where nothing else is presented, and only from an allowed origin. Raises Problem:
        `unauthorised`, `token_expired`, `forbidden_origin`, `rate_limited` after too many failures of the address,
        `bad_request` for credentials in two places or in one that is not enabled, `unavailable`.
        """
        found = self.begin(credentials)
        return await found if isinstance(found, Awaitable) else found

    def begin(self, credentials: Credentials) -> Identity | Awaitable[Identity] | None:
        """What `authenticate` answers, at once where nobody else has to be asked for it. Raises as it does."""
        self._check_origin(credentials)
        presented = self._presented(credentials)
        if presented is None and credentials.ticket is None:
            if credentials.operator:
                return self._operator(credentials, credentials.operator)
            if not self.open:
                return None
            return ANONYMOUS if credentials.operator is None else operator(ANONYMOUS.principal)
        self.limits.check_logins(credentials.address)
        if credentials.ticket is None and self.open:
            return ANONYMOUS
        try:
            if credentials.ticket is not None:
                found = self.tickets.begin(credentials.ticket, self.spend)
            else:
                found = self._bearer(presented or "")
        except (NotGenuine, NotATicket) as error:
            raise self._failed(credentials, error) from None
        if isinstance(found, Identity) and (found.subject is None or self.revocations.known.is_set()):
            return self.check(found)
        return self._finish(credentials, found)

    async def _operator(self, credentials: Credentials, token: str) -> Identity:
        """Whose cookie that is: an operator's, whose key is still one, when the console's own page presents it."""
        self.limits.check_logins(credentials.address)
        if not self._own_page(credentials):
            raise Problem("forbidden_origin", "The console's cookie counts for the console's own page alone")
        found = await self.operators(token)
        if found is None or not self._api_keys.holds(found.principal):
            raise self._failed(credentials, NotGenuine("no operator"))
        return found

    def _own_page(self, credentials: Credentials) -> bool:
        if credentials.origin is None:  # of a page's GET to its own origin
            return credentials.fetch_site == "same-origin" and not credentials.websocket
        return own_origin(credentials.origin, credentials.host, credentials.scheme)

    async def _finish(self, credentials: Credentials, found: Identity | Awaitable[Identity]) -> Identity:
        try:
            identity = found if isinstance(found, Identity) else await found
        except (NotGenuine, NotATicket) as error:
            raise self._failed(credentials, error) from None
        try:
            async with asyncio.timeout(self._settings.open_within):
                await self.revocations.known.wait()
        except TimeoutError:
            detail = "This node does not know yet which tokens were revoked: try again soon"
            raise Problem("unavailable", detail, retry_after=2) from None
        return self.check(identity)

    def check(self, identity: Identity) -> Identity:
        """`identity`, unless its token was revoked since it was accepted: then raises Problem("unauthorised")."""
        if self.revocations.refuses(identity):
            raise Problem("unauthorised", REVOKED)
        return identity

    def _failed(self, credentials: Credentials, error: NotGenuine | NotATicket) -> Problem:
        """The one way out of every failed check: the same answer, whichever it was."""
        log.debug("login from %s failed: %s", credentials.address, error)
        self.limits.failed_login(credentials.address)
        return Problem("unauthorised", REFUSED)

    def origin_allowed(self, origin: str, host: str | None, scheme: str) -> bool:
        """Whether a page of `origin` may speak to the gateway that it reached as `host` by `scheme`: for CORS."""
        return self._origins.allowed(origin, host, scheme, wildcard=not self.open)

    def origin_trusted(self, origin: str, host: str | None, scheme: str) -> bool:
        """Whether it may use the cookie too (CORS: Allow-Credentials), for which the setting `*` is not enough."""
        return self._origins.allowed(origin, host, scheme, wildcard=False)

    async def close(self) -> None:
        """End what is under way in the background."""
        await self._tokens.close()

    def foreign(self, credentials: Credentials) -> bool:
        """Whether they come from a page that may not connect."""
        try:
            self._check_origin(credentials)
        except Problem:
            return True
        return False

    def _check_origin(self, credentials: Credentials) -> None:
        """Refuse what a foreign page made a browser send. CORS does not apply to WebSockets (RFC 6455, 10.2)."""
        origin, host = credentials.origin, credentials.host
        guarded = credentials.websocket or self.open
        if guarded and origin is not None and not self.origin_allowed(origin, host, credentials.scheme):
            raise Problem("forbidden_origin", "Pages of this origin may not connect: add it to allowed_origins")
        if self.open and not (host_is_loopback(host) and _here(credentials.address)):
            raise Problem(
                "forbidden_origin",
                "Without keys the gateway answers this machine alone, as localhost or 127.0.0.1: set RINGCAST_API_KEYS "
                "to serve others",
            )

    def _presented(self, credentials: Credentials) -> str | None:
        """The one token or key that is presented beside a ticket, or the cookie when there is nothing else."""
        found = [name.removeprefix(SUBPROTOCOL) for name in credentials.subprotocols if name.startswith(SUBPROTOCOL)]
        scheme, _, value = (credentials.authorization or "").partition(" ")
        if scheme.lower() == "bearer":  # others, as a proxy's Basic, are not meant for the gateway
            found.append(value.strip())
        if credentials.token is not None:
            found.append(credentials.token)
        if credentials.query_token is not None:
            if not self._settings.token_in_query:
                raise Problem(
                    "bad_request",
                    "A token in the URL ends up in logs and histories: send it as `Authorization: Bearer`, get a "
                    "ticket for `?ticket=`, or set token_in_query",
                )
            found.append(credentials.query_token)
        if len(found) + (credentials.ticket is not None) > 1:
            raise Problem("bad_request", "Credentials came in more than one place: send them once")  # RFC 6750, 2
        if found or credentials.ticket is not None:
            return found[0] if found else None
        return self._cookie(credentials)

    def _cookie(self, credentials: Credentials) -> str | None:
        """The cookie's token. The browser adds it to requests of any page, so it counts from named origins alone."""
        name = self._settings.jwt_cookie
        token = credentials.cookies.get(name) if name is not None else None
        if token is None:
            return None
        origin = credentials.origin
        if origin is None:
            # A page's GET to its own origin has no Origin header; Sec-Fetch-Site, which no script can set, tells.
            allowed = credentials.fetch_site == "same-origin" and not credentials.websocket
        else:
            allowed = self.origin_trusted(origin, credentials.host, credentials.scheme)
        if not allowed:
            raise Problem(
                "forbidden_origin",
                "The cookie counts only with the Origin of a page of the gateway's own, or named in allowed_origins",
            )
        return token

    def _bearer(self, value: str) -> Identity | Awaitable[Identity]:
        if len(value) > MAX_TOKEN:
            raise NotGenuine("size")
        plain = self._tokens.plain(value)  # as nearly all are
        if plain is not None:
            return plain
        key = self._api_keys.find(value)
        if key is not None:
            return _backend(key)
        return self._tokens.identify(value)


async def nobody(_: str) -> None:
    """Where there is no console."""


@lru_cache(maxsize=64)
def _backend(key: str) -> Identity:
    return Identity(f"key:{key}", read=("*",), server=True)


def is_open(settings: Settings) -> bool:
    """Whether there are no keys at all, so that everyone on this machine may do everything."""
    return (
        not settings.api_keys
        and settings.jwt_hmac_key is None
        and settings.jwt_public_key is None
        and not settings.jwks_url
    )


def _here(address: str) -> bool:
    return not address or is_loopback(address)
