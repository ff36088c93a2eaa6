"""One job's state: what a reporter may say of it, how states are ordered, what silence makes of it; no I/O.

Every event of a job carries its whole state, so the newest one is the state, and newest is one comparison of versions:
[attempt, end, run, seq, rank]. `attempt` is the queue's own count. `end` is 0 while an attempt runs, 1 once it has
ended (retrying, succeeded, failed), 2 once the job has (dead_lettered, cancelled), each with nothing behind it: the
first end that is reported of an attempt is the one that counts. `run` is when an execution began, in milliseconds, so
that a redelivered attempt outranks the lost one. `rank` puts what a missed lease says above the event it was missed
after and below the next one: a heartbeat revives a stalled job, and a reported end replaces `lost`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from gateway.errors import Problem
from gateway.identity import check_subject
from gateway.message import MAX_OFFSET, Draft, check_channel, clip, format_time, new_id
from gateway.publish import check_data
from gateway.settings import Settings

EVENT = "job"  # of every message in a `jobs:` channel but deletions
RUNNING = ("started", "progress", "stalled")
ENDS = {"retrying": 1, "succeeded": 1, "failed": 1, "dead_lettered": 2, "cancelled": 2}
FINAL = ("succeeded", "failed", "dead_lettered", "cancelled")
STATES = ("queued", *RUNNING, *ENDS)
STALLED, LOST = 1, 2  # ranks
MAX_ID = 196  # characters, so that `jobs:job.<id>` is a channel
MAX_LEASE = 3_600_000  # milliseconds

# Seconds between two looks at a job, told as Ringcast-Poll-Interval. Nothing is told once nothing more is expected.
PACE = {"pending": 2.0, "queued": 2.0, "retrying": 2.0, "started": 1.0, "progress": 1.0, "stalled": 2.0, "failed": 5.0}

_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_OFFSET)]
_Amount = _Number | Annotated[float, msgspec.Meta(ge=0)]
_Text = Annotated[str, msgspec.Meta(max_length=500)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

Version = tuple[int, int, int, int, int]


class Progress(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How far it is: `done` of `total`, where that is known, and a line for people."""

    done: _Amount
    total: _Amount | None = None
    note: _Text | None = None


class Error(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What went wrong, as far as its reporter wants it to be seen by the job's owner."""

    message: Annotated[str, msgspec.Meta(max_length=4000)]
    type: _Name | None = None


class Times(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 3339, as far as known. `updated` is by the gateway's clock, the first two by their reporters'."""

    updated: str
    queued: str | None = None
    started: str | None = None
    ended: str | None = None


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a reporter POSTs."""

    state: Literal["queued", "started", "progress", "retrying", "succeeded", "failed", "dead_lettered", "cancelled"]
    user: str | None = None
    attempt: _Number | None = None
    run: _Number = 0
    seq: _Number = 0
    progress: Progress | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: Error | None = None
    lease_ms: Annotated[int, msgspec.Meta(ge=100, le=MAX_LEASE)] | None = None
    name: _Name | None = None
    parent: str | None = None
    weight: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    children: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    queued: _Number | None = None  # milliseconds since 1970


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """The `data` of a job's message."""

    job: str
    state: str
    final: bool  # no more is expected
    attempt: int
    run: int
    seq: int
    times: Times
    user: str | None = None
    name: str | None = None
    progress: Progress | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Error | None = None
    reason: str | None = None
    lease_ms: int | None = None
    parent: str | None = None
    weight: float | None = None
    children: int | None = None

    @property
    def running(self) -> bool:
        """Whether its reporter is owed a lease: started, and neither ended nor lost."""
        return self.state in RUNNING


_decode_body = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(State).decode


def check_id(job: str) -> str:
    """Return `job` when it can name one; raises Problem."""
    if not 1 <= len(job) <= MAX_ID or job in (".", ".."):  # in a URL's path the dots mean something else
        raise _bad(f"A job's id has 1 to {MAX_ID} characters", "id")
    try:
        check_channel(f"jobs:job.{job}")
    except ValueError:
        raise _bad("A job's id holds printable characters other than space, comma and '*'", "id") from None
    return job


def channel_of(job: str, user: str | None, parent: str | None = None) -> str:
    """Where a job's events go: to its user's channel, else to that of its parent, else to its own. Raises Problem."""
    if user is None:
        return "jobs:job." + check_id(job if parent is None else parent)
    try:
        return "jobs:" + check_subject(user)
    except ValueError as error:
        raise _bad(str(error).replace("`sub`", "user"), "user") from None


def parse(raw: bytes) -> Body:
    """A reporter's body. Raises Problem."""
    try:
        if not raw.isascii():
            raw.decode()
        body = _decode_body(raw)
    except UnicodeDecodeError as error:
        raise Problem("bad_json", f"Byte {error.start} is not UTF-8: JSON travels as UTF-8 only") from error
    except msgspec.ValidationError as error:
        fields = ", ".join(Body.__struct_fields__)
        raise _bad(f"{clip(str(error), 300)[1:-1]}; a job event takes {fields}") from error
    except msgspec.DecodeError as error:
        raise Problem("bad_json", f"{error}: send strict JSON (RFC 8259) in UTF-8") from error
    except RecursionError as error:
        raise Problem("too_deep", "The body is nested hundreds of levels deep") from error
    if body.state in ("started", "progress") and not body.run:
        raise _bad(f"{body.state} needs run: when this execution began, in milliseconds since 1970", "run")
    if body.state == "queued" and (body.run or body.seq):
        raise _bad("queued has no run and no seq: leave them out", "run")
    if body.parent is not None:
        check_id(body.parent)
    return body


def state_of(job: str, body: Body, attempt: int, now: int) -> State:
    """The whole state that an event tells; `now` is milliseconds since 1970."""
    queued = body.queued if body.queued is not None else now if body.state == "queued" else None
    result: msgspec.Raw | msgspec.UnsetType = body.result if bytes(body.result) else msgspec.UNSET
    return State(
        job, body.state, body.state in FINAL, attempt, body.run, body.seq,
        Times(format_time(now), _time(queued), _time(body.run or None),
              format_time(now) if body.state in FINAL else None),
        body.user, body.name, body.progress, result, body.error, None, body.lease_ms, body.parent,
        body.weight, body.children,
    )  # fmt: skip


def completed(end: State, known: State) -> State:
    """An end that somebody told who did not run the job, with what is known of its execution."""
    times = msgspec.structs.replace(
        end.times, queued=end.times.queued or known.times.queued, started=known.times.started
    )  # fmt: skip
    return msgspec.structs.replace(end, run=known.run, progress=end.progress or known.progress, times=times)


def version_of(state: State) -> Version:
    """Where a reported state stands among the job's others."""
    end = ENDS.get(state.state, 0)
    if state.reason == "lost":
        return state.attempt, 0, state.run, state.seq, LOST
    if end:
        return state.attempt, end, 0, 0, 0
    return state.attempt, 0, state.run, state.seq, STALLED if state.state == "stalled" else 0


def missed(state: State, now: int) -> State:
    """What a running job becomes when its lease is over: stalled, and lost when it was that already."""
    times = msgspec.structs.replace(state.times, updated=format_time(now))
    state = msgspec.structs.replace(state, result=msgspec.UNSET)  # not a result yet, and it may leave no room for more
    if state.state != "stalled":
        return msgspec.structs.replace(state, state="stalled", times=times)
    error = Error("Its worker has not been heard of for two leases", "lost")
    return msgspec.structs.replace(state, state="failed", reason="lost", error=error, times=times)


def pending(job: str) -> dict[str, Any]:
    """The state of a job that nobody has told of: a watcher may come first."""
    return {"job": job, "state": "pending", "final": False}


def draft(channel: str, state: State, settings: Settings) -> Draft:
    """The message that tells it. Raises Problem `too_large`, `too_deep`."""
    data = check_data(_encode(state), settings)
    ended = state.state in FINAL  # lost ones too: nobody may ever tell their end
    return Draft(channel, EVENT, data, new_id(), key=state.job, version=version_of(state),
                 ttl=settings.jobs_keep if ended else None)  # fmt: skip


def forgotten(channel: str, job: str, attempt: int, settings: Settings) -> Draft:
    """The deletion of a job; what is still told of this attempt is stale from then on."""
    version = (attempt, 2, MAX_OFFSET, 0, 0)
    return Draft(channel, "forgotten", b"null", new_id(), key=job, version=version, deleted=True,
                 ttl=settings.jobs_keep)  # fmt: skip


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    try:
        return format_time(milliseconds)
    except (ValueError, OverflowError):
        raise _bad("run and queued are milliseconds since 1970, and this is no year that is written") from None


def _bad(detail: str, field: str | None = None) -> Problem:
    return Problem("bad_request", detail) if field is None else Problem("bad_request", detail, field=field)
