"""`ringcast serve`, which says on SIGUSR1 how late its loop was since it was last asked.

    python -m tests.benchmarks.lag serve ...

A line on stderr: `lag [99th percentile, most]`, in seconds. What is late is not skipped: each of the times, 5 ms apart,
that go by while the loop is held has its own lag, so that a long hold counts for as long as it is.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time

from gateway import server
from gateway.cli import main

EVERY = 0.005  # seconds


class Watched(server.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._lags: list[float] = []
        self._due = time.monotonic()
        self._look()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._tell)

    def _look(self) -> None:
        now = time.monotonic()  # the loop's own clock stands still while it is held
        while self._due <= now:
            self._lags.append(now - self._due)
            self._due += EVERY
        asyncio.get_running_loop().call_later(self._due - now, self._look)

    def _tell(self) -> None:
        lags = sorted(self._lags) or [0.0]
        self._lags.clear()
        print(f"\nlag {json.dumps([lags[len(lags) * 99 // 100], lags[-1]])}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    server.Server = Watched  # type: ignore[misc]  # which `serve` takes from there
    main()
