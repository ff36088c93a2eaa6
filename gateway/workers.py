"""Several nodes on one port: a process for each, and one that starts them, starts a dead one again, and ends with them.

Each worker listens by itself (SO_REUSEPORT), so that the kernel spreads connections evenly. On a shared socket whoever
wakes first takes a whole storm. The price: what a dying worker had not accepted yet is reset, and comes back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.listener import bind, url_of
from gateway.settings import ConfigError, Settings

log = logging.getLogger("ringcast.workers")

UNUSABLE = 2  # the exit code of a worker whose settings cannot work: another one would not fare better
STABLE = 10.0  # seconds of life after which a worker's death is taken for a first one
LONGEST = 5.0  # seconds between two starts, at most
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}

Serve = Callable[[Settings, "Worker | None"], int]


class Worker:
    """What a worker has of the process that started it."""

    def __init__(self, alive: int, told: int) -> None:
        self._alive = alive  # the end of a pipe that closes when that process dies
        self._told = told  # the end of one that takes a byte when this one serves

    def ready(self) -> None:
        os.write(self._told, b".")

    def watch(self, orphaned: Callable[[], None]) -> None:
        """Call `orphaned` once nobody is left to end this worker. Needs the running loop."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(self._alive)
            orphaned()

        loop.add_reader(self._alive, ended)


@dataclass
class Place:
    """One worker's place: its process, when that began, and how often in a row one died young."""

    number: int
    pid: int = 0
    began: float = 0.0
    deaths: int = 0
    due: float | None = None  # when it is started again


class Workers:
    def __init__(self, settings: Settings, serve: Serve) -> None:
        """Raises ConfigError for what several processes cannot do."""
        if settings.broker.startswith("memory:"):
            raise ConfigError(
                "workers: memory:// is the memory of one process, which others cannot see: set workers to 1, or broker"
                " to redis:// or nats://"
            )
        if settings.advertise is not None:
            raise ConfigError("advertise: a worker cannot be reached by itself: leave it out, or set workers to 1")
        self._serve = serve
        self._port = bind(settings)  # held for the workers as long as this process lives
        self.url = url_of(self._port, settings)
        self.settings = settings.model_copy(update={"port": self._port.getsockname()[1]})
        self._places = [Place(number) for number in range(1, settings.workers + 1)]
        self._alive, self._held = os.pipe()
        self._told_by, self._told = os.pipe()
        os.set_blocking(self._told_by, False)
        self._ready = 0
        self._ending = False

    def run(self) -> int:
        """Serve until told to end; returns the exit code: 0 when every worker ended in good order."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        code = 0
        for place in self._places:
            self._start(place, before)
        while any(place.pid for place in self._places) or not self._ending:
            found = signal.sigtimedwait(_SIGNALS, self._patience())
            if found is not None and found.si_signo != signal.SIGCHLD:
                self._end(signal.Signals(found.si_signo))
            code = max(code, self._reap())
            self._announce()
            for place in self._places:
                if place.due is not None and place.due <= time.monotonic() and not self._ending:
                    self._start(place, before)
        self._port.close()
        return code

    def _patience(self) -> float:
        """Seconds until something is to be done that no signal tells."""
        if self._ready < len(self._places):
            return 0.05  # a byte of the pipe
        due = [place.due for place in self._places if place.due is not None]
        return max(0.0, min([due_at - time.monotonic() for due_at in due], default=60.0))

    def _start(self, place: Place, mask: Iterable[int]) -> None:
        place.began, place.due = time.monotonic(), None
        sys.stdout.flush()
        sys.stderr.flush()
        place.pid = os.fork()
        if place.pid:
            return
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(self._held)
            name = f"{self.settings.node}-{place.number}"
            code = self._serve(self.settings.model_copy(update={"node": name}), Worker(self._alive, self._told))
        except ConfigError as error:
            print(f"ringcast: {error}", file=sys.stderr)
            code = UNUSABLE
        except Exception:
            log.exception("worker %d could not serve", place.number)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # what is further up the stack is the other process's

    def _reap(self) -> int:
        """Note who has ended, and when the next is to be started in its place; returns the worst exit code."""
        worst = 0
        for place in self._places:
            if not place.pid:
                continue
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if not pid:
                continue
            code = os.waitstatus_to_exitcode(status)
            place.pid = 0
            if self._ending:
                asked = code in (0, -signal.SIGTERM, -signal.SIGINT)  # by a signal: before it had set up how to end
                worst = max(worst, 0 if asked else 1)
                continue
            if code == UNUSABLE:
                worst = UNUSABLE
                self._end(signal.SIGTERM)
                continue
            place.deaths = 1 if time.monotonic() - place.began > STABLE else place.deaths + 1
            wait = random.uniform(0, min(LONGEST, 0.1 * 2**place.deaths))  # noqa: S311 - spreads, hides nothing
            place.due = time.monotonic() + wait
            log.error("worker %d ended by %d and is started again in %.1f s", place.number, code, wait)
        return worst

    def _end(self, sig: signal.Signals) -> None:
        self._ending = True
        for place in self._places:
            if place.pid:
                os.kill(place.pid, sig)

    def _announce(self) -> None:
        if self._ready == len(self._places):
            return
        try:
            self._ready += len(os.read(self._told_by, 256))
        except BlockingIOError:
            return
        if self._ready >= len(self._places):
            self._ready = len(self._places)
            broker, names = self.settings.broker.partition(":")[0], self.settings.node
            print(f"ringcast ready {self.url} node={names} broker={broker} workers={self._ready}", flush=True)
