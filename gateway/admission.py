"""Who is let in: how many connections there are, how fast they come, and what this process can bear at the moment.

Whoever cannot be let in is told before anything is asked of it, which costs little, so that a storm of clients does not
sink the node that they come to. Plain decisions; the clock is handed in as seconds that only grow.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Collection

from gateway.errors import Problem
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.settings import Settings

BURST = 2.0  # seconds of accept_rate that may come at once
LATEST = 30.0  # seconds; whoever is sent away is told to come back until then


class Admission:
    """A node's connections, by transport; of polls those that wait.

    `missing` names what the node does not know yet and has to: it joins until that was nothing once.
    """

    def __init__(
        self, settings: Settings, limits: Limits, metrics: Metrics, missing: Callable[[], Collection[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.connections: Counter[str] = Counter()
        self.closed = False  # the node sends its clients away, and nobody is let in any more
        self.lag = 0.0  # seconds that the event loop came too late to what was due last
        self.descriptor = 0  # of the last connection; the kernel hands out the lowest that is free
        self._most = settings.max_connections
        self._rate = settings.accept_rate
        self._max_lag = settings.max_lag
        self._descriptors = _descriptors()
        self._limits, self._metrics, self._missing, self._clock = limits, metrics, missing, clock
        self._joining = True
        self._tokens, self._at = self._rate * BURST, clock()
        self._turn = self._at  # when whoever was sent away last is to come back

    def check(self, transport: str) -> None:
        """Raise Problem `draining`, `full` or `busy` for one that comes by this transport.

        A poll holds nothing but its request, so that it is no matter of how fast connections come.
        """
        self._check_place()
        if self._joining:
            self._joining = bool(self._missing())
        if self._joining:
            raise self._busy("is starting")
        if self.lag > self._max_lag:
            raise self._busy("has more to do than it can")
        if self.descriptor >= self._descriptors:
            raise self._busy("has hardly any file descriptors left")
        if transport != "poll" and self._refilled() < 1:
            raise self._busy("takes as many connections a second as it can")

    def arrive(self, transport: str, address: str) -> None:
        """Count a connection that was checked, until `gone`. Raises Problem `draining`, `full`, `rate_limited`."""
        self._check_place()  # again: logging in may have taken a while
        self._limits.connect(address)
        self.connections[transport] += 1
        self._metrics.accepts[transport] += 1
        if transport != "poll":
            self._tokens = self._refilled() - 1

    def gone(self, transport: str, address: str) -> None:
        self.connections[transport] -= 1
        self._limits.disconnect(address)

    def _check_place(self) -> None:
        if self.closed:
            raise Problem("draining", "This node is shutting down: try again, another one answers", retry_after=1)
        if sum(self.connections.values()) >= self._most:
            raise Problem("full", "This node holds as many connections as it may: try again soon", retry_after=5)

    def _refilled(self) -> float:
        now = self._clock()
        self._tokens = min(self._rate * BURST, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return self._tokens

    def _busy(self, why: str) -> Problem:
        """The refusal; those who are sent away come back one after another, no faster than they can be taken."""
        now = self._clock()
        self._turn = max(self._turn, now + 1) + 1 / self._rate
        if self._turn > now + LATEST:
            self._turn = now + 1
        return Problem("busy", f"This node {why}: try again, or another one", retry_after=round(self._turn - now, 3))


def _descriptors() -> float:
    """How many of the process's file descriptors may be in use."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if most == resource.RLIM_INFINITY else most * 0.95
