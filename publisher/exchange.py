"""Publishing without I/O: what to send, what the answer means, whether and when to try again.

An exchange carries some messages to the gateway in as many tries as the deadline allows. Both clients drive it alike:

    while (request := exchange.next()) is not None:
        sleep request.delay, send request.body with request.headers, then
        begin(status, headers), feed(bytes) ..., end()      or cut(error) where the connection fails

Every try sends a message under the same id, so what an earlier one stored is not stored again. Messages that were
answered are not sent again; those that go out once more are therefore stored behind the ones that went through.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from publisher.errors import PublishError, Refused, TargetsFailed, Unavailable
from publisher.message import Entry, Outcome, Receipt
from publisher.trace import trace_headers

MAX_ANSWER = 16 << 20  # bytes of an answer that are kept; receipts of 500 messages are far below


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to try, all in seconds. Waits are drawn from [0, base * 2^n], at most `cap` ("full jitter")."""

    deadline: float = 30.0  # for all tries of one request together
    timeout: float = 10.0  # for each step of one try: connecting, sending, each piece of the answer
    base: float = 0.2
    cap: float = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    body: bytes
    headers: Mapping[str, str]
    delay: float  # seconds to wait before it is sent
    timeout: float


class _Problem(msgspec.Struct):
    code: str = ""
    status: int = 0
    title: str = ""
    detail: str = ""


class _Result(msgspec.Struct):
    channel: str
    offset: int = 0
    id: str = ""
    duplicate: bool = False
    error: _Problem | None = None


class _Answer(msgspec.Struct):
    line: int = 1
    results: list[_Result] | None = None
    error: _Problem | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_problem = msgspec.json.Decoder(_Problem).decode


@dataclass(slots=True)
class _Fault:
    """Why a message is not acknowledged yet, though it may be at the next try."""

    detail: str
    status: int | None = None
    retry_after: float | None = None


@dataclass(slots=True)
class _Pending:
    entry: Entry
    fault: _Fault | None = None
    receipts: dict[str, Receipt] = field(default_factory=dict)  # by channel, kept across tries
    problems: dict[str, _Problem] = field(default_factory=dict)  # by channel, of the newest answer


class Exchange:
    """One request's worth of messages on their way; `outcomes` has one of each once `next` returned None.

    `lines` sends a single message as a line too, so that its answer never stands for that of the whole request.
    """

    def __init__(
        self, entries: Sequence[Entry | PublishError], retry: Retry, *, first: int = 1, lines: bool = False,
        clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._retry = retry
        self._first = first
        self._lines = lines
        self._clock = clock
        self._jitter = jitter
        self._until = clock() + retry.deadline
        self._tries = 0
        self._ended: dict[int, Outcome] = {}
        self._pending: dict[int, _Pending] = {}
        for n, entry in enumerate(entries):
            if isinstance(entry, PublishError):
                self._finish(n, [], entry)
            else:
                self._pending[n] = _Pending(entry)
        self._sent: list[int] = []
        self._status = 0
        self._retry_after: float | None = None
        self._buffer = bytearray()

    @property
    def outcomes(self) -> list[Outcome]:
        return [self._ended[n] for n in sorted(self._ended)]

    def next(self) -> Request | None:
        """The request to send now, or None when every message has its outcome."""
        delay = self._delay() if self._tries and self._pending else 0.0
        left = self._until - self._clock() - delay
        if self._pending and left <= 0:
            self.give_up()
        if not self._pending:
            return None
        self._tries += 1
        self._sent = list(self._pending)
        self._status, self._retry_after = 0, None
        self._buffer.clear()
        for n in self._sent:
            self._pending[n].fault = None
        bodies = [self._pending[n].entry.body for n in self._sent]
        kind = "application/json" if len(bodies) == 1 and not self._lines else "application/x-ndjson"
        headers = {"Content-Type": kind, **trace_headers()}
        return Request(b"\n".join(bodies), headers, delay, min(self._retry.timeout, left))

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer's head; the names of `headers` are looked up in lower case."""
        self._status = status
        self._retry_after = retry_after(headers.get("retry-after"))

    def feed(self, data: bytes) -> None:
        """A piece of the answer. Raises TimeoutError when the deadline is over, for `cut`."""
        self._buffer += data
        if self._status == 200:
            *lines, rest = bytes(self._buffer).split(b"\n")
            self._buffer[:] = rest
            for line in lines:
                self._line(line)
        if len(self._buffer) > MAX_ANSWER:
            raise TimeoutError(f"the answer is longer than {MAX_ANSWER} bytes")
        if self._clock() >= self._until:
            raise TimeoutError("the answer came too slowly")

    def end(self) -> None:
        """The answer is complete; what it left unanswered is tried again."""
        if self._status == 200:
            self._line(bytes(self._buffer))
            self._fault_rest(_Fault("the gateway's answer ended early", 200))
            return
        problem = problem_of(bytes(self._buffer), self._status)
        if may_pass(self._status):
            self._fault_rest(_Fault(problem.detail, self._status, self._retry_after))
            return
        for n in self._sent:
            if n in self._pending:
                self._finish(n, [], Refused(problem.code, self._status, problem.detail))

    def cut(self, error: Exception) -> None:
        """The connection failed; what was not answered before is tried again."""
        self._fault_rest(_Fault(str(error) or type(error).__name__))

    def _line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            answer = _decode_answer(line)
        except msgspec.DecodeError:
            answer = _Answer(line=0)
        pending = self._pending.get(self._sent[answer.line - 1]) if 1 <= answer.line <= len(self._sent) else None
        if pending is None or (answer.results is None and answer.error is None):
            unread = Refused("not_ringcast", 200, "the answer holds no receipts; does the URL name a Ringcast gateway?")
            for n in [n for n in self._sent if n in self._pending]:
                self._finish(n, [], unread)
            return
        n = self._sent[answer.line - 1]
        if answer.error is not None:
            self._failed(n, answer.error)
        elif answer.results is not None:
            self._answered(n, answer.results)

    def _failed(self, n: int, problem: _Problem) -> None:
        if may_pass(problem.status):
            self._pending[n].fault = _fault(problem)
        else:
            self._finish(n, [], _refused(problem))

    def _answered(self, n: int, results: list[_Result]) -> None:
        pending = self._pending[n]
        pending.problems.clear()
        for result in results:
            if result.error is not None:
                pending.problems[result.channel] = result.error
            else:
                # The first receipt counts: at a further try a stored target answers as its own duplicate.
                receipt = Receipt(result.channel, result.offset, result.id, result.duplicate)
                pending.receipts.setdefault(result.channel, receipt)
        again = next((problem for problem in pending.problems.values() if may_pass(problem.status)), None)
        if again is not None:
            pending.fault = _fault(again)
        elif not pending.problems:
            self._finish(n, list(pending.receipts.values()))
        else:
            self._finish_failed(n)

    def _finish_failed(self, n: int) -> None:
        """An end with what the newest answer said of each target."""
        pending = self._pending[n]
        errors: dict[str, PublishError] = {
            channel: self._unavailable(pending.entry, _fault(problem)) if may_pass(problem.status)
            else _refused(problem)
            for channel, problem in pending.problems.items()
        }
        receipts = list(pending.receipts.values())
        [error, *_] = errors.values()
        self._finish(n, receipts, error if pending.entry.single else TargetsFailed(receipts, errors))

    def _finish(self, n: int, receipts: list[Receipt], error: PublishError | None = None) -> None:
        self._pending.pop(n, None)
        self._ended[n] = Outcome(self._first + n, receipts, error)

    def _fault_rest(self, fault: _Fault) -> None:
        for n in self._sent:
            pending = self._pending.get(n)
            if pending is not None and pending.fault is None:
                pending.fault = fault

    def _delay(self) -> float:
        asked = max((p.fault.retry_after or 0.0 for p in self._pending.values() if p.fault), default=0.0)
        # Beyond what was asked for, so that those who were told the same do not come back in the same instant.
        return asked + self._jitter() * min(self._retry.cap, self._retry.base * 2.0 ** min(self._tries - 1, 32))

    def give_up(self) -> None:
        """Try no more: what is not acknowledged is `Unavailable`."""
        for n, pending in list(self._pending.items()):
            if pending.problems:
                self._finish_failed(n)
            else:
                self._finish(n, [], self._unavailable(pending.entry, pending.fault or _Fault("nothing was sent")))

    def _unavailable(self, entry: Entry, fault: _Fault) -> Unavailable:
        tries = "1 try" if self._tries == 1 else f"{self._tries} tries"
        return Unavailable(
            f"not acknowledged after {tries} (deadline {self._retry.deadline:g} s): {fault.detail}",
            id=entry.id, attempts=self._tries, status=fault.status, retry_after=fault.retry_after,
        )  # fmt: skip


def may_pass(status: int) -> bool:
    """Whether what was answered with this status may go through later."""
    return status == 429 or status >= 500


def _fault(problem: _Problem) -> _Fault:
    return _Fault(problem.detail or problem.title, problem.status)


def _refused(problem: _Problem) -> Refused:
    return Refused(problem.code, problem.status, problem.detail or problem.title)


def problem_of(body: bytes, status: int) -> _Problem:
    """The problem of an answer, or what can be said of one that comes from something else on the way."""
    try:
        problem = _decode_problem(body)
    except msgspec.DecodeError:
        problem = _Problem()
    return _Problem(
        problem.code or f"http_{status}", status, problem.title,
        problem.detail or problem.title or f"answered with HTTP status {status}",
    )  # fmt: skip


def retry_after(value: str | None) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds or a date; None where it is missing or neither."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())
