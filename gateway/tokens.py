"""JSON Web Tokens (RFC 7519, and RFC 8725 on what goes wrong with them): which are genuine and what they claim."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeGuard

import jwt

from gateway.errors import Problem
from gateway.hs256 import Secret
from gateway.identity import Identity, user_identity
from gateway.keys import Key, hmac_key, public_key
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.jwks import Jwks

log = logging.getLogger("ringcast.auth")

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")


class NotGenuine(Exception):
    """The token is not one of ours. The name of the check that failed is for the log alone."""


class Tokens:
    """Checks tokens against every key that is configured: a shared secret, a public key, JWK sets.

    A token is tried with the keys whose own algorithm its header names, and its `kid` only narrows the choice among
    the keys of a JWK set: nothing in a token's header is ever loaded, opened or called. `aud` must hold the setting
    jwt_audience; when that is not set, a token with an `aud` is refused, since it was made for somebody else. `iss`
    must be jwt_issuer when that is set. `exp` is required unless jwt_require_exp is false; without it the sessions
    of a token last until they end by themselves.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        """Take the keys of `settings`. Raises ConfigError for one that cannot work."""
        self._settings = settings
        self._clock = clock
        self._keys: list[Key] = []
        self._secret: Secret | None = None  # where the plain token is to be told at once
        if settings.jwt_hmac_key is not None:
            self._keys.append(hmac_key(settings.jwt_hmac_key))
            if settings.jwt_audience is None and settings.jwt_issuer is None:
                self._secret = Secret(settings.jwt_hmac_key.encode())
        if settings.jwt_public_key is not None:
            self._keys.append(public_key(settings.jwt_public_key))
        self._sets: list[Jwks] = []
        if settings.jwks_url:
            from gateway.jwks import Jwks  # and an HTTP client, which takes long

            self._sets = [Jwks(url) for url in settings.jwks_url]

    def plain(self, token: str) -> Identity | None:
        """The user of a plain token that the shared secret signed, for little; None where it takes `identify` to tell.

        Raises Problem as that does.
        """
        if self._secret is None or not _SHAPE.match(token):
            return None
        claims = self._secret.claims_of(token, self._clock() + self._settings.jwt_leeway)
        return None if claims is None else self._identity(claims)

    def identify(self, token: str) -> Identity | Awaitable[Identity]:
        """The user a token speaks for, at once where a key that is here tells.

        Raises NotGenuine, Problem("token_expired"), Problem("unavailable") while the keys that could tell cannot be
        fetched, or Problem("unauthorised") with the reason when a genuine token claims what no session can have.
        """
        if not _SHAPE.match(token):
            raise NotGenuine("shape")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, RecursionError) as error:  # RecursionError: PyJWT before 2.11 passes it on
            raise NotGenuine(type(error).__name__) from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str):
            raise NotGenuine("alg")
        claims = self._try(token, (key for key in self._keys if key.algorithm == algorithm))
        if claims is not None:
            return self._identity(claims)
        if not self._sets:
            raise NotGenuine("signature")
        return self._identify_by_sets(token, algorithm, kid)

    async def _identify_by_sets(self, token: str, algorithm: str, kid: str | None) -> Identity:
        claims = await self._try_sets(token, algorithm, kid)
        if claims is None:
            raise NotGenuine("signature")
        return self._identity(claims)

    def _identity(self, claims: dict[str, Any]) -> Identity:
        """Raises Problem."""
        expires = claims.get("exp")
        if expires is not None and not _is_time(expires):
            raise _unusable("`exp` must be a number: seconds since 1970")
        if expires is None and self._settings.jwt_require_exp:
            raise _unusable("it never expires: give it an `exp`, or set jwt_require_exp to false")
        # Until then it is accepted anew, so until then its sessions last.
        until = None if expires is None else expires + self._settings.jwt_leeway
        if until is not None and until <= self._clock():
            raise Problem("token_expired", "The token has expired: get a new one")
        sub, channels, publish = claims.get("sub"), claims.get("channels"), claims.get("publish")
        try:
            return user_identity(sub, channels, publish, until, _issued(claims), claims.get("info"))
        except ValueError as error:
            raise _unusable(str(error)) from error

    async def close(self) -> None:
        """End fetches that are under way."""
        for keys in self._sets:
            await keys.close()

    async def _try_sets(self, token: str, algorithm: str, kid: str | None) -> dict[str, Any] | None:
        if algorithm not in ("RS256", "ES256", "EdDSA"):
            return None  # no set holds such a key: do not ask for one
        tried = [key for keys in self._sets for key in keys.held(algorithm, kid)]
        claims = self._try(token, tried)
        if claims is not None or (tried and kid is not None):
            return claims
        # An unknown key id, or none at all: the keys may have been changed since.
        await asyncio.gather(*(keys.renew() for keys in self._sets))
        fresh = [key for keys in self._sets for key in keys.held(algorithm, kid) if key not in tried]
        claims = self._try(token, fresh)
        if claims is None and any(keys.failing for keys in self._sets):
            # Perhaps a new key signed it: "unauthorised" would make a client with a good token give up for ever.
            wait = max(keys.cooldown for keys in self._sets)
            raise Problem("unavailable", "The keys that tokens are checked with are out of reach", retry_after=wait)
        return claims

    def _try(self, token: str, keys: Iterable[Key]) -> dict[str, Any] | None:
        """The claims under the first key that signed the token; None when none did. Raises NotGenuine."""
        settings = self._settings
        for key in keys:
            try:
                return jwt.decode(
                    token, key.material, algorithms=[key.algorithm], leeway=settings.jwt_leeway,
                    audience=settings.jwt_audience, issuer=settings.jwt_issuer,
                    # Told apart from a forgery, so looked at last; `sub` is answered with the reason.
                    options={"verify_exp": False, "verify_sub": False},
                )  # fmt: skip
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, RecursionError) as error:
                raise NotGenuine(type(error).__name__) from None
        return None


def _issued(claims: dict[str, Any]) -> float | None:
    issued = claims.get("iat")
    return float(issued) if _is_time(issued) else None


def _is_time(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unusable(reason: str) -> Problem:
    return Problem("unauthorised", f"The token is genuine but cannot be used: {reason}")
