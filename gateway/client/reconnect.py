"""Whether, when and over which transport to come back after a connection has ended. No I/O."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from gateway.errors import BAD_REQUEST, FORBIDDEN, TOKEN_EXPIRED, UNAUTHORISED, reconnects

FIRST, MOST = 1.0, 30.0  # seconds; a wait is drawn from [0, 1], [0, 2], [0, 4] ... [0, 30]
STABLE = 60.0  # seconds; after a connection this long the waits begin anew
LOWERED = 300.0  # seconds; so long a transport that got through is where the next attempt begins, not the best


class Refused(Exception):
    """The gateway will not serve this subscriber, however often it asks; `code` is 40xx of the table of close codes."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})" if reason else f"refused with code {code}")
        self.code = code
        self.reason = reason


class TokenExpired(Refused):
    """The token has expired and there is no callback that would give another."""


class Ended(Exception):
    """Why a connection ended, or never began. Never leaves the client."""

    def __init__(
        self, reason: str, *, code: int | None = None, blocked: bool = False, status: int | None = None,
        wait: float = 0.0, planned: bool = False, final: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.reason = reason
        self.code = code  # of the gateway's table, where it was the gateway who ended it
        self.blocked = blocked  # the transport did not get through; credentials and node are not known to be at fault
        self.status = status  # of an HTTP answer that is not the gateway's
        self.wait = wait  # seconds, the least that was asked for
        self.planned = planned  # announced by a goodbye whose time has come
        self.final = final  # the gateway said not to come back


class Reconnect:
    """Follows one subscriber's connections. `rung` is the transport to use, 0 being the best."""

    def __init__(
        self, rungs: int, *, refreshable: bool, clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self.rung = 0
        self._rungs = rungs
        self._refreshable = refreshable
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        self._hurried = False  # came back at once with a new token already
        self._lowered = 0.0
        self._opened: float | None = None

    @property
    def open(self) -> bool:
        return self._opened is not None

    @property
    def settled(self) -> bool:
        """Whether the connection has lasted so long that a goodbye need not be one that everybody gets who comes."""
        return self._opened is not None and self._clock() - self._opened >= FIRST

    def soon(self) -> float:
        """The seconds until the next attempt beside a connection that still receives."""
        return self._jitter() * FIRST

    def opened(self) -> None:
        """A first frame came through."""
        self._opened = self._clock()

    def ended(self, end: Ended) -> float:
        """The seconds to wait before the next attempt, on `rung`. Raises Refused or TokenExpired for none."""
        lasted = self._clock() - self._opened if self._opened is not None else None
        self._opened = None
        if lasted is not None and lasted >= STABLE:
            self._failures = 0
        if lasted is not None and lasted >= FIRST:
            self._hurried = False
        if end.code is not None and (end.final or not reconnects(end.code)):
            raise Refused(end.code, end.reason)
        if end.code == TOKEN_EXPIRED:
            if not self._refreshable:
                raise TokenExpired(end.code, end.reason)
            if not self._hurried:
                self._hurried = True
                return 0.0
        elif end.planned and lasted is not None and lasted >= FIRST:
            return 0.0  # but no loop with a node that says goodbye to whoever comes
        elif end.blocked and lasted is None:
            if self.rung + 1 < self._rungs:
                self.rung += 1
                self._lowered = self._clock()
                return 0.0
            self.rung = 0
            if end.status is not None and 400 <= end.status < 500 and end.status != 429:
                code = {401: UNAUTHORISED, 403: FORBIDDEN}.get(end.status, BAD_REQUEST)
                raise Refused(code, f"{end.reason}; does the URL name a Ringcast gateway?")
        if lasted is None or self._clock() - self._lowered >= LOWERED:
            self.rung = 0
        delay = max(end.wait, self._jitter() * min(MOST, FIRST * 2.0 ** min(self._failures, 10)))
        self._failures += 1
        return delay
