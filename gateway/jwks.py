"""Keys published at a URL (a JWK set, RFC 7517): fetched in the background, kept while the URL is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import msgspec

from gateway.keys import Key, json_web_key
from gateway.origin import is_loopback
from gateway.settings import ConfigError

log = logging.getLogger("ringcast.jwks")

MAX_BYTES = 256 << 10  # of a set
MAX_KEYS = 100  # of a set


class Jwks:
    """The keys of one URL. A request waits for a fetch only when no key held could be the one."""

    def __init__(
        self, url: str, *, max_age: float = 300.0, cooldown: float = 10.0, timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Prepare to fetch from `url`; nothing is fetched yet. All times are in seconds.

        A set older than `max_age` is fetched again while it goes on serving. Two fetches begin at least `cooldown`
        apart, so that tokens with invented key ids cannot make the gateway hammer the URL.
        Raises ConfigError unless the URL is https, or http on this machine.
        """
        parts = urlsplit(url)
        local = parts.hostname is not None and is_loopback(parts.hostname)
        if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
            raise ConfigError(f"jwks_url {parts.scheme}://{parts.hostname} must be https, or http on this machine")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(f"jwks_url of {parts.hostname} must not hold a user or password: the keys are public")
        self.url = url
        self.cooldown = cooldown
        self.failing = False  # the last fetch brought nothing
        self._max_age = max_age
        self._timeout = timeout
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched: float | None = None
        self._tried: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._tls = httpx.create_ssl_context() if parts.scheme == "https" else False  # costs 30 ms: once, at start
        self._direct = local  # a proxy of the environment does not lead to this machine

    def held(self, algorithm: str, kid: str | None) -> list[Key]:
        """The keys that could have signed such a token; starts a fetch when the set is old."""
        if self._fetched is None or self._clock() - self._fetched >= self._max_age:
            self._refresh()
        return [key for key in self._keys if key.algorithm == algorithm and kid in (None, key.kid)]

    async def renew(self) -> None:
        """Wait for the fetch that is under way, or for a new one when the last is long enough ago."""
        task = self._refresh()
        if task is not None:
            await asyncio.shield(task)  # others wait for it too

    async def close(self) -> None:
        """End a fetch that is under way."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _refresh(self) -> asyncio.Task[None] | None:
        if self._task is not None and not self._task.done():
            return self._task
        now = self._clock()
        if self._tried is not None and now - self._tried < self.cooldown:
            return None
        self._tried = now
        self._task = asyncio.create_task(self._fetch(), name=f"jwks {self.url}")
        return self._task

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                keys = _parse(await self._get())
        except (httpx.HTTPError, TimeoutError, ValueError, msgspec.DecodeError, RecursionError) as error:
            self.failing = True
            reason = str(error) or type(error).__name__
            log.warning("no keys from %s: %s; the %d held go on serving", self.url, reason, len(self._keys))
            return
        self._keys, self.failing, self._fetched = keys, False, self._clock()
        if not keys:
            log.warning("%s holds no key that tokens are checked with (RS256, ES256, EdDSA)", self.url)

    async def _get(self) -> bytes:
        # Redirects are not followed: they could lead to plain http. A compressed body could unfold to any size.
        headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
        async with (
            httpx.AsyncClient(verify=self._tls, trust_env=not self._direct, timeout=self._timeout) as client,
            client.stream("GET", self.url, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise ValueError(f"it answered {response.status_code}")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError("it sent a compressed body, which was not asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError(f"it sent more than {MAX_BYTES} bytes")
            return bytes(body)


def _parse(body: bytes) -> list[Key]:
    """The usable keys of a JWK set. Raises ValueError, msgspec.DecodeError or RecursionError when it is none."""
    document = msgspec.json.decode(body)
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError("it sent no JWK set, an object with a list `keys`")
    if len(members) > MAX_KEYS:
        raise ValueError(f"it sent {len(members)} keys, at most {MAX_KEYS} are taken")
    return [key for key in map(json_web_key, members) if key is not None]
