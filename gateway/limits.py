"""What one address may use: connections, requests, failed logins. Plain decisions in bounded memory."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from gateway.errors import Problem
from gateway.settings import Settings

MAX_ADDRESSES = 50_000  # remembered at a time, some 10 MB for each limit; one that is forgotten begins anew
MAX_HOPS = 32  # of X-Forwarded-For that are looked at
FAILED_LOGINS_RATE = 1.0  # forgiven a second

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Buckets:
    """A token bucket for each key, the least recently used forgotten first."""

    __slots__ = ("_burst", "_capacity", "_clock", "_rate", "_state")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float], capacity: int = MAX_ADDRESSES) -> None:
        """Hold `burst` tokens for each of up to `capacity` keys, refilled with `rate` a second."""
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._capacity = capacity
        self._state: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key: tokens, at

    def __len__(self) -> int:
        return len(self._state)

    def wait(self, key: str) -> float:
        """Seconds until a token is there; 0 when one is there now."""
        return max(0.0, (1.0 - self._tokens(key, self._clock())) / self._rate)

    def take(self, key: str) -> float:
        """Take a token and return 0, or take none and return the seconds until one is there."""
        now = self._clock()
        tokens = self._tokens(key, now)
        if tokens < 1.0:
            return (1.0 - tokens) / self._rate
        self._state[key] = (tokens - 1.0, now)
        self._state.move_to_end(key)
        if len(self._state) > self._capacity:
            self._state.popitem(last=False)
        return 0.0

    def _tokens(self, key: str, now: float) -> float:
        if key not in self._state:
            return self._burst
        tokens, at = self._state[key]
        return min(self._burst, tokens + (now - at) * self._rate)


class Limits:
    """The limits of every address. An address is an IPv4 address or an IPv6 /64, which one customer usually holds."""

    def __init__(
        self, settings: Settings, clock: Callable[[], float] = time.monotonic, capacity: int = MAX_ADDRESSES
    ) -> None:
        self._per_address = settings.connections_per_address
        self._trusted = [ipaddress.ip_network(proxy) for proxy in settings.trusted_proxies]
        self._connections: dict[str, int] = {}  # bounded by the connections themselves
        rate = settings.requests_per_second
        self._requests = Buckets(rate, rate, clock, capacity)
        self._logins = Buckets(FAILED_LOGINS_RATE, settings.failed_logins, clock, capacity)

    def address(self, peer: str, forwarded_for: str | None = None) -> str:
        """The client's address: `peer`, unless that is a trusted proxy which names another in X-Forwarded-For.

        The header is read from the right, where the nearest proxy wrote, past the proxies that are trusted: what
        stands left of the first other address was written by anybody. The reading ends with the last address that
        is known for sure where an entry is no address.
        """
        if forwarded_for is None:
            return peer
        client = _parse(peer)
        if client is None or not self._in_trusted(client):
            return peer
        for entry in reversed(forwarded_for.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            hop = _parse(_without_port(entry.strip()))
            if hop is None:
                break
            client = hop
            if not self._in_trusted(client):
                break
        return str(client)

    def trusts(self, peer: str) -> bool:
        """Whether `peer` is a trusted proxy, whose X-Forwarded headers are believed."""
        address = _parse(peer) if self._trusted else None
        return address is not None and self._in_trusted(address)

    def connect(self, address: str) -> None:
        """Count a connection until `disconnect`. Raises Problem("rate_limited") when the address has too many."""
        key = _key(address)
        count = self._connections.get(key, 0)
        if count >= self._per_address:
            raise Problem(
                "rate_limited",
                f"Your address holds {count} connections, as many as it may: close some first",
                retry_after=5.0,
            )
        self._connections[key] = count + 1

    def disconnect(self, address: str) -> None:
        """Count a connection no longer; once for each `connect` that did not raise."""
        key = _key(address)
        count = self._connections[key] - 1
        if count:
            self._connections[key] = count
        else:
            del self._connections[key]

    def request(self, address: str) -> None:
        """Count a request. Raises Problem("rate_limited") when the address sends more than requests_per_second."""
        wait = self._requests.take(_key(address))
        if wait > 0:
            raise Problem("rate_limited", "Your address sends too many requests: slow down", retry_after=_whole(wait))

    def check_logins(self, address: str) -> None:
        """Raise Problem("rate_limited") when the address failed too often to be listened to; counts nothing.

        That goes for right credentials too, or guessing would go on at full speed.
        """
        wait = self._logins.wait(_key(address))
        if wait > 0:
            raise Problem(
                "rate_limited",
                "Too many logins from your address have failed: wait before trying again",
                retry_after=_whole(wait),
            )

    def failed_login(self, address: str) -> None:
        """Count a failed login."""
        self._logins.take(_key(address))

    def _in_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _without_port(entry: str) -> str:
    """Some proxies write `203.0.113.7:41234` and `[2001:db8::1]:41234`."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


@lru_cache(maxsize=8192)
def _key(address: str) -> str:
    """What an address is counted under; a peer that has none (a Unix socket) under what it is called."""
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return f"{ipaddress.IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address if parsed is None else str(parsed)


def _whole(wait: float) -> float:
    """Retry-After holds whole seconds (RFC 9110, 10.2.3)."""
    return float(math.ceil(wait))
