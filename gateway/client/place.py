"""Where a subscriber connects: at the address it was given, or at the home that the gateway named. No I/O.

A home is a hint of the gateway that was spoken to last. It is followed at the next connection, and one that does not
let us in costs a single attempt: the next goes to the address that was given, at once. Our token goes there, so no
gateway can send us just anywhere: a home has the host of the given address, or one below it, or one that the
application names; and it has the same scheme, so TLS is neither lost nor begun without certificates.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from gateway.errors import DRAINING, TOKEN_EXPIRED

HOME_WITHIN = 4.0  # seconds that a home has to let us in
LEFT = 300.0  # seconds for which a home that did not is not tried again

# Nothing that two readers of URLs could take for different hosts (no user, no query, no escapes), nor that a library
# would refuse in ways of its own: no empty or long label, no port that there cannot be.
_LABEL = r"[A-Za-z0-9-]{1,63}"
_HOME = re.compile(
    rf"(https?)://(\[[0-9A-Fa-f:.]+\]|{_LABEL}(?:\.{_LABEL})*)(?::([0-9]{{1,5}}))?(?:/[A-Za-z0-9/_.~-]*)?\Z"
)
_PATTERN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|(\*\.)?[A-Za-z0-9][A-Za-z0-9.-]*)\Z")


class Place:
    """`url` is the given address, `now` where the next connection goes, `partition` what proxies place it by."""

    def __init__(
        self, url: str, partition: int | None = None, homes: Iterable[str] = (),
        *, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`homes` are hosts, or `*.` and a domain. Raises ValueError for anything else."""
        self.url = url
        self.partition = partition
        self._hosts = _hosts(url, homes)
        self._clock = clock
        self._home: str | None = None
        self._left: dict[str, float] = {}  # homes that did not let us in, and until when they are not tried

    @property
    def now(self) -> str:
        return self._home or self.url

    def told(self, at: str, partition: int | None, home: str | None) -> None:
        """The gateway at `at` let us in and said where we belong; without `home` it is the place, or knows none."""
        if partition is not None:
            self.partition = partition
        named = at if home is None else home
        left = self._left.get(named, 0.0) > self._clock()
        self._home = named if named != self.url and not left and (home is None or self.accepts(home)) else None

    def leave(self, at: str, code: int | None = None) -> None:
        """The home at `at` did not let us in: for `code` of the table, or for no reason that it gave.

        One that is about to end, or wants a newer token, is as good a home as before once that is done.
        """
        if code in (DRAINING, TOKEN_EXPIRED):
            self.forget(at)
            return
        now = self._clock()
        self._left = {home: until for home, until in self._left.items() if until > now} | {at: now + LEFT}
        self._home = None

    def forget(self, at: str) -> None:
        """The gateway at `at` is about to end: if that is our home, another one will be named."""
        if self._home == at:
            self._home = None

    def accepts(self, home: str) -> bool:
        """Whether a token may go to this address."""
        match = _HOME.match(home) if len(home) <= 2048 else None
        if match is None or match[1] != urlsplit(self.url).scheme or int(match[3] or 0) > 65535 or len(match[2]) > 253:
            return False
        host = match[2].lower()
        return any(host.endswith(name) if name.startswith(".") else host == name for name in self._hosts)


def _hosts(url: str, homes: Iterable[str]) -> list[str]:
    """Hosts as they are; what begins with a dot stands for all that end so."""
    given = urlsplit(url).hostname or ""
    hosts = [f"[{given}]" if ":" in given else given]
    if not _is_address(given):
        hosts.append("." + given)
    for pattern in homes:
        if _PATTERN.match(pattern) is None:
            raise ValueError(f"homes are hosts such as gateway-1.example.com or *.example.com, not {pattern!r}")
        hosts.append(pattern.lower().removeprefix("*"))
    return hosts


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
