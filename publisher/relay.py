"""What relays share: what they count and tell, and how long they wait when the way is blocked."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

BASE, CAP = 0.2, 10.0  # seconds; waits are drawn from [0, BASE * 2^n], at most CAP ("full jitter")

MOST = 60.0  # seconds that another side's wish for a pause is heeded; a Kafka consumer must not be silent for minutes

log = logging.getLogger("ringcast.relay")


@dataclass(slots=True)
class Progress:
    """What a relay did since its start, for its log and its metrics."""

    delivered: int = 0  # acknowledged, duplicates included
    duplicates: int = 0  # of these, stored before: by a relay that did not hear the answer
    found: int = 0  # not sent again, because the channel's log holds them
    refused: Counter[str] = field(default_factory=Counter)  # by code
    faults: Counter[str] = field(default_factory=Counter)  # by side: gateway, source
    waiting: float = 0  # rows or records that are not published yet, when it last looked
    oldest: float = 0.0  # seconds that the oldest of these had waited
    last: float = 0.0  # when something was last acknowledged, in seconds since 1970

    def acknowledge(self, count: int, duplicates: int) -> None:
        self.delivered += count
        self.duplicates += duplicates
        if count:
            self.last = time.time()


class Backoff:
    """Waits longer after each failure of one side, says once that it is away, and once that it is back."""

    def __init__(self, side: str, stop: asyncio.Event, jitter: Callable[[], float] = random.random) -> None:
        self._side = side
        self._stop = stop
        self._jitter = jitter
        self._failures = 0  # in a row, without any progress between them
        self._since: float | None = None
        self._told = ""

    async def failed(self, detail: str, at_least: float = 0.0, *, progress: bool = False) -> None:
        """Log what is new, then wait; ends early when the relay is told to stop.

        `progress` says that some of it went through, so that waiting longer each time would help nobody.
        """
        if self._since is None:
            self._since = time.monotonic()
        if detail != self._told:
            log.warning("%s: %s; trying again", self._side, detail)
            self._told = detail
        try:
            async with asyncio.timeout(self.delay(at_least, progress)):
                await self._stop.wait()
        except TimeoutError:
            return

    def delay(self, at_least: float, progress: bool) -> float:
        """The seconds to wait after one more failure."""
        self._failures = 1 if progress else self._failures + 1
        return min(at_least, MOST) + self._jitter() * min(CAP, BASE * 2.0 ** min(self._failures - 1, 16))

    def worked(self) -> None:
        self._failures = 0
        if self._since is not None:
            log.warning("%s: works again, after %.1f s", self._side, time.monotonic() - self._since)
            self._since, self._told = None, ""
