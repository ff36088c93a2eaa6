"""One attempt at a job, as its worker sees it: what it says, and what is then sent."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from contextvars import ContextVar, Token
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import quote

import msgspec

from publisher.errors import InvalidMessage
from publisher.message import encoded
from publisher.reports import Answer, Report, Reports

T = TypeVar("T")
End = Literal["retrying", "succeeded", "failed", "dead_lettered", "cancelled"]
Failure = BaseException | str | None

EVERY = 0.25  # seconds between two progress reports of a job at least
BEATS = 3  # signs of life in a lease
MAX_RESULT = 48 << 10  # bytes; a larger result is left out
MAX_TEXT = 2000  # characters of an error's message
MAX_ID = 196  # characters

_NAME = re.compile(r"[^ ,*]{1,196}\Z")

log = logging.getLogger("ringcast.jobs")


class Job:
    """One attempt at a job, as its worker sees it. Thread-safe; what comes after its end is passed over."""

    def __init__(
        self, reports: Reports | None, url: str, id: str, lease: float, wait: float, *,
        user: str | None = None, name: str | None = None, attempt: int = 1, parent: str | None = None,
        weight: float | None = None, children: int | None = None, queued_at: int | None = None,
    ) -> None:  # fmt: skip
        """See `JobReporter.job`. Without `reports` it says nothing to anybody."""
        self._about: dict[str, Any] = {
            "user": user, "name": None if name is None else _text(name), "attempt": attempt,
            "lease_ms": round(lease * 1000) if lease else None, "parent": parent,
            "weight": weight, "children": children, "queued": queued_at,
        }  # fmt: skip
        try:
            msgspec.convert(self._about, _About)
        except msgspec.ValidationError as error:
            raise InvalidMessage(f"not a job: {error}") from error
        for named in (id, parent, user):
            if named is not None and not _names(named):
                raise InvalidMessage(
                    f"{named[:60]!a} cannot name a job or its user: 1 to {MAX_ID} printable characters other than"
                    " space, comma and '*'"
                )
        if user is not None and user.startswith("job."):
            raise InvalidMessage("a user's name must not begin with 'job.', which names the jobs of no user")
        self.id, self.user, self.name, self.attempt = id, user, name, attempt
        self.ended = False
        self.run = 0  # when this execution began, in milliseconds since 1970
        self._reports, self._wait = reports, wait
        self._url = url + quote(id, safe="")
        self._every = lease / BEATS if lease else None
        self._lock = threading.RLock()
        self._state = ""
        self._seq = 0
        self._progress: dict[str, Any] | None = None
        self._told: float = 0.0  # when its last report was made
        self._noted = False  # there is something that was not reported yet
        self._end: Report | None = None
        self._tokens: list[Token[Job | None]] = []
        _jobs.add(self)

    # ---------------------------------------------------------------- what a worker says

    def queued(self) -> None:
        """It waits for a worker."""
        with self._lock:
            if self._state or self.ended:
                return
            self._state = "queued"
            self._about["queued"] = self._about["queued"] or time.time_ns() // 1_000_000
        self._note()

    def started(self) -> None:
        """A worker has begun; from here on it gives signs of life by itself until it ends or is forgotten."""
        with self._lock:
            if self.run or self.ended:
                return
            self._state, self.run = "started", time.time_ns() // 1_000_000
        self._note()

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """It has done so much; told at most every 250 ms, the newest of it."""
        if self.ended:
            return
        found: dict[str, Any] = {"done": done}
        if total is not None:
            found["total"] = total
        if note is not None:
            found["note"] = note[:500]
        self._progress = found  # one assignment: no lock, so that it may be called a million times
        if self._noted:
            return
        self.started()
        self._state = "progress"
        self._note(max(0.0, self._told + EVERY - time.monotonic()))

    def retrying(self, error: Failure = None) -> None:
        """This attempt failed, and another one follows under the next `attempt`."""
        self._finish("retrying", error)

    def succeeded(self, result: Any = None) -> None:
        """It is done. A result that is not JSON, or above 48 KiB of it, is left out."""
        self._finish("succeeded", result=result)

    def failed(self, error: Failure = None) -> None:
        """It failed, and is not tried again."""
        self._finish("failed", error)

    def dead_lettered(self, error: Failure = None) -> None:
        """It was given up and put aside for a person to look at."""
        self._finish("dead_lettered", error)

    def cancelled(self, error: Failure = None) -> None:
        """Somebody ended it."""
        self._finish("cancelled", error)

    def settle(self) -> bool:
        """Wait until its end is stored, but never for a gateway that is away or slow; tells whether it is.

        For whoever acknowledges to a queue: what is acknowledged first may be lost with the process.
        """
        return self._reports is None or self._reports.settle(self, self._wait)

    async def asettle(self) -> bool:
        return await asyncio.to_thread(self.settle)

    def track(self, items: Iterable[T], total: float | None = None) -> Iterator[T]:
        """Go through `items` and report how far that is; `total` is their number, where they have one."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        self.progress(0, total)
        for done, item in enumerate(items, 1):
            yield item
            self.progress(done, total)

    async def atrack(self, items: AsyncIterable[T], total: float | None = None) -> AsyncIterator[T]:
        """`track` for what is awaited."""
        self.progress(0, total)
        done = 0
        async for item in items:
            yield item
            done += 1
            self.progress(done, total)

    # ---------------------------------------------------------------- as a context

    def __enter__(self) -> Self:
        self.started()
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave(error)
        self.settle()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave(error)
        await self.asettle()

    def leave(self) -> None:
        """Be the current job no longer, and say nothing of an end: for queues, which tell it elsewhere."""
        _current.reset(self._tokens.pop())

    def _leave(self, error: BaseException | None) -> None:
        self.leave()
        if error is None:
            self.succeeded()
        elif isinstance(error, asyncio.CancelledError):
            self.cancelled(error)
        else:
            self.failed(error)

    # ---------------------------------------------------------------- for the sender's thread

    @property
    def size(self) -> int:
        return 500 + (0 if self._end is None else len(self._end.body))

    def report(self) -> Report | None:
        with self._lock:
            if self._end is not None:
                return self._end
            if not self._state:
                return None
            self._noted = False  # first: what is said from here on is for the next one
            self._told = time.monotonic()
            if self.run:
                self._seq += 1
            return Report(self._url, self._body())

    def reported(self, answer: Answer) -> float | None:
        known = answer.job
        if answer.stale and known is not None and (known.state == "stalled" or known.reason == "lost"):
            with self._lock:
                if known.attempt == self.attempt and known.run >= self.run > 0 and not self.ended:
                    self.run = known.run + 1  # the execution before ran by a clock ahead of ours, and is gone
                    return 0.0
        return self._every if self.run and not self.ended else None

    # ---------------------------------------------------------------- inside

    def _body(self, *, progress: bool = True, **more: Any) -> bytes:
        body = {k: v for k, v in self._about.items() if v is not None}
        body["state"] = self._state
        if self.run:
            body |= {"run": self.run, "seq": self._seq}
        if progress and (told := self._progress) is not None:
            try:
                body["progress"] = encoded(told)
            except InvalidMessage:
                log.warning("the progress of job %s is not JSON: it is left out", self.id)
        return msgspec.json.encode(body | more)

    def _finish(self, state: End, error: Failure = None, result: Any = None) -> None:
        with self._lock:
            if self.ended:
                return
            self._state = state
            more: dict[str, Any] = {}
            if error is not None:
                more["error"] = _error(error)
            if result is not None and (known := self._result(result)) is not None:
                more["result"] = known
            self._end = Report(self._url, self._body(**more), self._body(progress=False))
            self.ended = True
        self._note()

    def _result(self, result: Any) -> msgspec.Raw | None:
        try:
            found = encoded(result)
        except InvalidMessage as error:
            log.warning("the result of job %s is left out: %s", self.id, error)
            return None
        if len(bytes(found)) > MAX_RESULT:
            log.warning("the result of job %s is left out: %d bytes are too many", self.id, len(bytes(found)))
            return None
        return found

    def after_fork(self) -> None:
        self._lock, self._noted = threading.RLock(), False

    def _note(self, after: float = 0.0) -> None:
        self._noted = True
        if self._reports is not None:
            self._reports.note(self, after)

    def __repr__(self) -> str:
        return f"<Job {self.id} attempt {self.attempt} {self._state or 'unsaid'}>"


def current() -> Job:
    """The job whose `with` this runs in; where there is none, one that says nothing to anybody."""
    return _current.get() or Job(None, "", "none", 0, 0)


class _About(msgspec.Struct):
    """What goes with each of a job's reports."""

    user: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None
    attempt: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    lease_ms: int | None
    parent: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)] | None
    weight: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None
    children: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None
    queued: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] | None


_current: ContextVar[Job | None] = ContextVar("ringcast job", default=None)
_jobs: weakref.WeakSet[Job] = weakref.WeakSet()


def _names(name: str) -> bool:
    return bool(_NAME.match(name)) and name.isprintable() and name not in (".", "..")


def _error(error: BaseException | str) -> dict[str, str]:
    if isinstance(error, str):
        return {"message": _text(error)}
    try:
        message = str(error)
    except Exception as broken:  # an exception of the application's that cannot even be shown
        message = f"(its text cannot be had: {type(broken).__name__})"
    return {"type": type(error).__name__[:200], "message": _text(message)}


def _text(text: str) -> str:
    """What JSON can hold of it, and no more than a person reads."""
    return text[:MAX_TEXT].encode(errors="replace").decode()


def _after_fork() -> None:
    """Somebody else's thread may have held these when the process was copied."""
    for job in list(_jobs):
        job.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
