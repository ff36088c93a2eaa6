"""The background sender of job reports: one thread a process, a bounded buffer, and patience.

Whoever has something to say is noted here and asked for it when its turn has come, so that a job which speaks faster
than it is listened to is only ever behind by its newest state. Ends go first, and are the last to be given up.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - else loaded at the first look-up of a host, see Reports
import heapq
import logging
import os
import random
import signal
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import msgspec

log = logging.getLogger("ringcast.jobs")

TIMEOUT = 10.0  # seconds for one request
BACKOFF = 5.0  # seconds between two tries at most, where the gateway does not ask for more
RETRY_AFTER = 30.0  # and then
SLOW = 0.25  # seconds: from here on nobody waits for the gateway's answers
PASSING = (401, 403, 404, 408, 425, 429)  # what somebody may set right: a key, an address, a load; else a 4xx is final
IDLE = 60.0  # seconds that the thread sleeps when there is nothing to do


@dataclass(frozen=True, slots=True)
class Report:
    """What is sent: `bare` is what is left of an end where the gateway refuses the whole."""

    url: str
    body: bytes
    bare: bytes | None = None


class Reporting(Protocol):
    """Who has something to say. The sender's thread calls; none of it may wait for anything."""

    ended: bool

    @property
    def size(self) -> int:
        """Bytes that what it has to say holds."""

    def report(self) -> Report | None:
        """What is to be said now; None when there is nothing."""

    def reported(self, answer: Answer) -> float | None:
        """The report before was stored; returns after how many seconds the next one is due, if any is."""


class Told:
    """An end that was reported somewhere else, and only has to be sent."""

    ended = True

    def __init__(self, report: Report) -> None:
        self._report = report
        self.size = 500 + len(report.body)

    def report(self) -> Report:
        return self._report

    def reported(self, answer: Answer) -> None:
        return None


class Current(msgspec.Struct):
    """What the gateway knows of the job, where that is newer."""

    state: str
    attempt: int
    run: int = 0
    reason: str | None = None


class Answer(msgspec.Struct):
    stale: bool = False
    job: Current | None = None


_decode = msgspec.json.Decoder(Answer).decode


class Reports:
    """Sends reports in the background. Thread-safe; a forked child begins with nothing and a thread of its own."""

    def __init__(
        self, headers: dict[str, str], *, secure: bool, jobs: int, size: int,
        transport: Callable[[], httpx.BaseTransport] | None,
    ) -> None:  # fmt: skip
        """`jobs` and `size` (bytes) bound what waits; `secure` where the gateway is spoken to by TLS."""
        # All that the thread would load at its first request is loaded here: a child that is forked while another
        # thread imports waits for that import for ever. The authorities' certificates are read once for all of them.
        self._client: dict[str, Any] = {
            "headers": headers, "timeout": TIMEOUT,
            "verify": httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        }  # fmt: skip
        httpx.Client(**self._client).close()
        self._most, self._most_bytes = jobs, size
        self._transport = transport
        self.dropped = 0  # of jobs whose newest state was given up for want of room
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._lock = threading.Condition()
        self._ends: dict[Reporting, int] = {}  # with an end to tell, and its bytes
        self._live: dict[Reporting, None] = {}  # with anything else
        self._bytes = 0
        self._flying: Reporting | None = None
        self._due: list[tuple[float, int, weakref.ref[Reporting]]] = []  # whoever is only alive keeps nothing alive
        self._at: weakref.WeakKeyDictionary[Reporting, float] = weakref.WeakKeyDictionary()  # the one that counts
        self._count = 0
        self._thread: threading.Thread | None = None
        self._hurry = self._closed = False
        self._failures = 0
        self._wait_until = 0.0
        self._slow = False
        self._refused = 200  # what the last answer was: the same refusal is logged once

    # ---------------------------------------------------------------- from the job's threads

    def note(self, job: Reporting, after: float = 0.0) -> None:
        """`job` has something to say, `after` so many seconds at the earliest. Returns at once."""
        with self._lock:
            if self._closed:
                return
            if job.ended:
                self._live.pop(job, None)
                if job not in self._ends:
                    self._ends[job] = job.size
                    self._bytes += job.size
            elif job not in self._ends:
                self._live[job] = None
                self._push(job, after)
            self._make_room()
            if self._thread is None:
                self._start()
            self._lock.notify_all()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="ringcast jobs", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter ends: the job is not to suffer for it
            log.warning("jobs are not told of for now: %s", error)
        else:
            self._thread = thread

    def settle(self, job: Reporting, within: float) -> bool:
        """Wait until the end of a job is stored; not at all while the gateway is away or slow. Tells whether it is."""
        until = time.monotonic() + within
        with self._lock:
            while job in self._ends:
                left = until - time.monotonic()
                if left <= 0:
                    self._slow = True
                if left <= 0 or self._failures or self._slow or self._closed or self._thread is None:
                    return False
                self._lock.wait(left)
            return True

    def flush(self, within: float) -> bool:
        """Wait until all that was said is stored; tells whether it is."""
        until = time.monotonic() + within
        with self._lock:
            if self._thread is None:
                return not (self._ends or self._live)
            self._hurry = True
            self._lock.notify_all()
            try:
                while self._ends or self._live or self._flying is not None:
                    left = until - time.monotonic()
                    if left <= 0:
                        return False
                    self._lock.wait(left)
                return True
            finally:
                self._hurry = False

    def close(self, within: float) -> None:
        """Flush, then end the thread; what could not be told in time is counted in the log."""
        done = self.flush(within)
        with self._lock:
            left = len(self._ends) + len(self._live)
            self._closed = True
            self._lock.notify_all()
        if not done:
            log.warning("the gateway was not told the newest state of %d jobs", left)

    def after_fork(self) -> None:
        """What waits is the parent's to tell, and its thread and lock stayed there."""
        self._begin()

    # ---------------------------------------------------------------- bounds

    def _push(self, job: Reporting, after: float) -> None:
        at = time.monotonic() + after
        if self._at.get(job, at + 1) > at:
            self._at[job] = at
            self._count += 1
            heapq.heappush(self._due, (at, self._count, weakref.ref(job)))

    def _make_room(self) -> None:
        while len(self._live) + len(self._ends) > self._most or self._bytes > self._most_bytes:
            if self._live:
                self._live.pop(next(iter(self._live)))
            elif len(self._ends) > 1:
                self._bytes -= self._ends.pop(next(iter(self._ends)))
            else:
                return
            if not self.dropped:
                log.warning("more job reports wait for the gateway than are held: the oldest are given up")
            self.dropped += 1

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        _take_no_signals()
        transport = None if self._transport is None else self._transport()
        with httpx.Client(transport=transport, **self._client) as http:
            while (job := self._next()) is not None:
                try:
                    self._send(http, job)
                except Exception:
                    # Not a fault of the network's: the others' reports are not to suffer for it.
                    log.exception("a job report could not be made")
                    self._done(job)
                del job  # or this thread would be who keeps it alive

    def _next(self) -> Reporting | None:
        """The next that is to be asked for its report; waits for one. None when it is over."""
        with self._lock:
            while True:
                now = time.monotonic()
                if self._closed:
                    return None
                if now >= self._wait_until:
                    job = next(iter(self._ends), None) or self._next_live(now)
                    if job is not None:
                        self._flying = job
                        return job
                    until = self._due[0][0] if self._due else now + IDLE
                else:
                    until = self._wait_until
                self._lock.wait(max(0.001, until - now))

    def _next_live(self, now: float) -> Reporting | None:
        if self._hurry:
            job = next(iter(self._live), None)
            if job is not None:
                del self._live[job]
                self._at.pop(job, None)
            return job
        while self._due and self._due[0][0] <= now:
            at, _, found = heapq.heappop(self._due)
            job = found()
            if job is not None and self._at.get(job) == at:
                del self._at[job]
                self._live.pop(job, None)
                if not job.ended:
                    return job
        return None

    def _send(self, http: httpx.Client, job: Reporting) -> None:
        ended = job.ended
        report = job.report()
        if report is None:
            self._done(job)
            return
        began = time.monotonic()
        try:
            response = http.post(report.url, content=report.body, headers=_JSON)
            if response.status_code in (400, 413) and report.bare is not None:
                log.error("the gateway refuses a job's report, its end is told without the rest: %s", response.text)
                response = http.post(report.url, content=report.bare, headers=_JSON)
        except httpx.RequestError as error:
            self._failed(job, str(error) or type(error).__name__, None)
            return
        if response.status_code in PASSING or response.status_code >= 500:
            self._failed(job, f"HTTP status {response.status_code}", response.headers.get("retry-after"))
            return
        if self._failures:
            log.info("the gateway answers again")
        self._failures, self._slow = 0, time.monotonic() - began > SLOW
        answer = Answer()
        if response.status_code == 200:
            try:
                answer = _decode(response.content)
            except msgspec.DecodeError as error:
                log.error("the answer to a job report is not a gateway's: %s", error)
        else:
            level = logging.ERROR if response.status_code != self._refused else logging.DEBUG
            log.log(level, "the gateway refuses a job's report (%d): %s", response.status_code, response.text[:500])
        self._refused = response.status_code
        self._done(job, ended, job.reported(answer))

    def _done(self, job: Reporting, ended: bool = True, after: float | None = None) -> None:
        """A report was stored, or never will be."""
        with self._lock:
            self._flying = None
            if ended:
                self._bytes -= self._ends.pop(job, 0)
            if after is not None and not job.ended:
                if after == 0.0:
                    self._live[job] = None
                self._push(job, after)  # else a sign of life: nobody waits for it
            self._lock.notify_all()

    def _failed(self, job: Reporting, why: str, retry_after: str | None) -> None:
        if not self._failures:
            log.warning("the gateway is not told of jobs for now, what is newest is kept: %s", why)
        with self._lock:
            self._flying = None
            self._failures += 1
            wait = random.uniform(0.5, 1) * min(BACKOFF, 0.1 * 2.0 ** min(self._failures, 16))  # noqa: S311 - spreads
            if retry_after is not None and retry_after.isdecimal():
                wait = max(wait, min(RETRY_AFTER, float(retry_after)))
            self._wait_until = time.monotonic() + wait
            if job not in self._ends:
                self._live[job] = None
                self._push(job, 0.0)
                self._make_room()
            self._lock.notify_all()


def _take_no_signals() -> None:
    """A process that blocks one for a moment means it: billiard's, while it holds the pipe that its pool shares."""
    if hasattr(signal, "pthread_sigmask"):
        faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}  # the thread's own
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)


_JSON = {"Content-Type": "application/json"}
_all: weakref.WeakSet[Reports] = weakref.WeakSet()


def _after_fork() -> None:
    for reports in list(_all):
        reports.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
