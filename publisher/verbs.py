"""What a backend does to its users' connections, without I/O: what to send, what it is answered, when to try again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from publisher.errors import InvalidMessage, Refused, Unavailable
from publisher.exchange import Request, Retry, may_pass, problem_of, retry_after
from publisher.message import Receipt, new_id

Answer = TypeVar("Answer")


class Connection(msgspec.Struct, frozen=True):
    """One connection of a user; of a poll, while it waits."""

    session: str
    node: str
    transport: str  # websocket, sse or poll
    connected: datetime
    subscriptions: int


class Connections(msgspec.Struct, frozen=True):
    """A user's connections on the nodes that answered; `total` counts those too that are not named.

    The nodes in `unanswered` may hold others, or may be no more.
    """

    user: str
    total: int
    connections: list[Connection]
    unanswered: list[str]


class Call(Generic[Answer]):
    """One verb on its way, in as many tries as the deadline allows, each under the same id:

    while (request := call.next()) is not None:
        sleep request.delay, send it, then `answered`, or `cut` where the connection fails
    call.result()
    """

    def __init__(
        self, method: str, path: str, kind: type[Answer], retry: Retry, body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None, id: str | None = None,
        clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self.method, self.path, self.query = method, path, dict(query or {})
        self._kind, self._retry, self._clock, self._jitter = kind, retry, clock, jitter
        self._body = msgspec.json.encode({k: v for k, v in body.items() if v is not None}) if body else b""
        self._id = id or new_id()
        self._until = clock() + retry.deadline
        self._tries = 0
        self._fault = "nothing was sent"
        self._status: int | None = None
        self._wait: float | None = None  # what the last answer asked for
        self._outcome: Answer | Refused | Unavailable | None = None

    def next(self) -> Request | None:
        """The request to send now, or None when there is a result."""
        if self._outcome is not None:
            return None
        delay = 0.0
        if self._tries:
            spread = self._jitter() * min(self._retry.cap, self._retry.base * 2.0 ** min(self._tries - 1, 32))
            delay = (self._wait or 0.0) + spread
        left = self._until - self._clock() - delay
        if left <= 0:
            self._outcome = Unavailable(
                f"not acknowledged after {self._tries} tries (deadline {self._retry.deadline:g} s): {self._fault}",
                id=self._id, attempts=self._tries, status=self._status, retry_after=self._wait,
            )  # fmt: skip
            return None
        self._tries += 1
        headers = {"Content-Type": "application/json", "Idempotency-Key": self._id} if self._body else {}
        return Request(self._body, headers, delay, min(self._retry.timeout, left))

    def answered(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        if status == 200:
            try:
                self._outcome = msgspec.json.decode(body, type=self._kind)
            except msgspec.DecodeError:
                detail = "the answer cannot be read; does the URL name a Ringcast gateway?"
                self._outcome = Refused("not_ringcast", 200, detail)
            return
        problem = problem_of(body, status)
        if may_pass(status):
            self._fault, self._status, self._wait = problem.detail, status, retry_after(headers.get("retry-after"))
        else:
            self._outcome = Refused(problem.code, status, problem.detail)

    def cut(self, error: Exception) -> None:
        self._fault, self._status, self._wait = str(error) or type(error).__name__, None, None

    def result(self) -> Answer:
        """Raises Refused, or Unavailable where it may have been done or not."""
        if isinstance(self._outcome, Refused | Unavailable):
            raise self._outcome
        assert self._outcome is not None, "the call is not over"
        return self._outcome


def disconnect(
    retry: Retry, user: str, revoke_before: float | datetime | None, code: str | None, hint: str | None, id: str | None
) -> Call[Receipt]:
    if isinstance(revoke_before, datetime):
        if revoke_before.tzinfo is None:
            raise InvalidMessage("revoke_before has no time zone: use datetime.now(UTC), or seconds since 1970")
        revoke_before = revoke_before.timestamp()
    body = {"user": user, "revoke_before": revoke_before, "code": code, "hint": hint}
    return Call("POST", "/v1/disconnect", Receipt, retry, body, id=id)


def subscription(retry: Retry, verb: str, user: str, channels: Sequence[str], id: str | None) -> Call[Receipt]:
    if isinstance(channels, str):
        raise InvalidMessage("channels is a list of channels, not one of them")
    return Call("POST", f"/v1/{verb}", Receipt, retry, {"user": user, "channels": list(channels)}, id=id)


def connections(retry: Retry, user: str) -> Call[Connections]:
    return Call("GET", "/v1/connections", Connections, retry, query={"user": user})
