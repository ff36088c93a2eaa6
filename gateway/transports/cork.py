"""Corking: all that became ready for a connection in one turn of the loop leaves in one write."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.hub import Hub
    from gateway.metrics import Metrics

log = logging.getLogger("ringcast.native")

SLICE = 0.005  # seconds of writing after which the loop gets its turn: 5,000 writes would hold it for 45 ms
LOOK = 32  # connections between two looks at the clock


class Corked(Protocol):
    corked: bool

    def flush(self) -> None: ...

    def abort(self) -> None: ...


class Cork:
    """The connections of a process that have something to write, in the order in which they came by it.

    A fan-out that takes longer than a slice goes on in the loop's next turn, so that it delays nobody's reads, timers
    or acknowledgements by more. Each connection keeps its own order: what comes meanwhile waits in its outbox.

    The first message that comes in a turn is timed, from its store and from the broker's reader until the last of the
    connections that became ready in that turn has been written to. No delivery pays for it.
    """

    __slots__ = ("_hub", "_loop", "_metrics", "_owed", "_ready", "_timed", "now")

    def __init__(self, hub: Hub, metrics: Metrics) -> None:
        self._hub, self._metrics = hub, metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: list[Corked] = []
        self._timed: tuple[int, float] | None = None  # the message's time, and when it came by the loop's own clock
        self.now = 0.0  # the loop's time, as late as a few connections take
        self._owed = 0  # connections that are to be written to before the timed one is through

    def add(self, line: Corked) -> None:
        """Flush the line in the loop's next turn. It is not in here yet: see its `corked`."""
        line.corked = True
        if not self._ready:
            self._later()
            if self._timed is None and self._hub.passing is not None:
                self._timed = (self._hub.passing.time, time.perf_counter())
        self._ready.append(line)

    def _later(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        ready, self._ready = self._ready, []  # what is added meanwhile has its turn in the next one
        assert self._loop is not None
        until = time.perf_counter() + SLICE
        if self._timed is not None and self._owed <= 0:
            self._owed = len(ready)
        for begin in range(0, len(ready), LOOK):
            self.now = self._loop.time()
            for line in ready[begin : begin + LOOK]:
                line.corked = False
                try:
                    line.flush()
                except Exception:  # of one connection, which ends for it: the others wait for theirs
                    log.exception("a connection could not be written to")
                    line.abort()
            self._owed -= LOOK
            if self._timed is not None and self._owed <= 0:
                self._written(*self._timed)
            if time.perf_counter() > until and begin + LOOK < len(ready):
                if not self._ready:
                    self._later()
                self._ready = ready[begin + LOOK :] + self._ready
                return

    def _written(self, stored: int, came: float) -> None:
        self._timed, self._owed = None, 0
        self._metrics.delivery.add(max(0.0, time.time() - stored / 1000))
        self._metrics.fanout.add(time.perf_counter() - came)
