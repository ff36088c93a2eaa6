"""Which of a channel's jobs have been silent for too long, and how far those with parts are; no I/O.

Time is that of the node's clock alone, counted from when it heard: neither a worker's nor the store's opinion of it
matters, and whoever was not listening, because it started, took over or lost the store, grants a full lease.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec

from gateway import job as jobs
from gateway.job import Error, Progress, State
from gateway.message import format_time


@dataclass(slots=True)
class Part:
    """Of a job that is a part of another, what the whole needs to know."""

    weight: float
    fraction: float
    state: str
    lost: bool
    run: int

    @property
    def ended(self) -> bool:
        return self.state in jobs.FINAL


@dataclass(slots=True)
class Running:
    state: State
    deadline: float


@dataclass(slots=True)
class Leases:
    """The jobs of one channel that somebody has to look after. What `wholes` returns is to be published."""

    running: dict[str, Running] = field(default_factory=dict)
    whole: dict[str, State] = field(default_factory=dict)  # jobs that have parts and have not ended
    parts: dict[str, dict[str, Part]] = field(default_factory=dict)  # by the job they are parts of
    changed: set[str] = field(default_factory=set)  # of these, whose parts are not told yet

    @property
    def idle(self) -> bool:
        return not self.running and not self.whole

    def begin(self, states: list[State], now: float) -> None:
        """All that the channel holds."""
        for table in (self.running, self.whole, self.parts):
            table.clear()
        for state in states:
            self.heard(state, now)

    def heard(self, state: State, now: float) -> None:
        """The newest event of a job."""
        name = state.job
        if state.running and state.lease_ms is not None:
            self.running[name] = Running(state, now + state.lease_ms / 1000)
        else:
            self.running.pop(name, None)
        if state.children is not None:
            if state.final:
                self.whole.pop(name, None)
                self.parts.pop(name, None)
            else:
                self.whole[name] = state
                self.changed.add(name)
        if state.parent is not None and state.parent != name:
            self.parts.setdefault(state.parent, {})[name] = _part(state)
            self.changed.add(state.parent)

    def forgot(self, name: str) -> None:
        """A job was deleted. What it was to the whole that it is a part of it stays."""
        self.running.pop(name, None)
        self.whole.pop(name, None)
        self.parts.pop(name, None)

    def grant(self, now: float) -> None:
        """Nobody could be heard until now, nor told of anything: a full lease to all."""
        self.changed |= self.whole.keys()
        for running in self.running.values():
            running.deadline = now + (running.state.lease_ms or 0) / 1000

    def extend(self, by: float) -> None:
        """This process stood still for so many seconds."""
        for running in self.running.values():
            running.deadline += by

    def due(self, now: float) -> list[State]:
        """The jobs whose lease is over, each once: until it is heard of again, or granted another."""
        found = [running for running in self.running.values() if running.deadline <= now]
        for running in found:
            running.deadline = math.inf
        return [running.state for running in found]

    def wholes(self, clock: int) -> list[State]:
        """What becomes of the jobs whose parts have changed."""
        found = []
        for name in self.changed & self.whole.keys():
            state = whole(self.whole[name], list(self.parts.get(name, {}).values()), clock)
            if state is not None:
                found.append(state)
        self.changed.clear()
        return found


def whole(state: State, parts: list[Part], clock: int) -> State | None:
    """The state of a job with parts that follows from theirs; None when it is that already.

    It is done as far as its parts are, by their weights; those not heard of yet weigh 1. It ends when as many as it is
    said to have, and all that are known, have ended: well if all did. One that is lost fails it for the time being.
    """
    state = msgspec.structs.replace(state, result=msgspec.UNSET)
    expected = state.children or 0
    missing = max(0, expected - len(parts))
    total = sum(part.weight for part in parts) + missing
    done = sum(part.weight * part.fraction for part in parts)
    progress = Progress(_rounded(done), _rounded(total), state.progress.note if state.progress else None)
    over = not missing and all(part.ended for part in parts)
    run = state.run or min((part.run for part in parts if part.run), default=0)
    times = msgspec.structs.replace(state.times, updated=format_time(clock))
    if run and times.started is None:
        times = msgspec.structs.replace(times, started=format_time(run))
    if not over:
        if not run or (progress == state.progress and state.state == "progress"):
            return None
        return msgspec.structs.replace(
            state, state="progress", run=run, seq=state.seq + 1, progress=progress, error=None, reason=None, times=times
        )
    failed = [part for part in parts if part.state in ("failed", "dead_lettered")]
    name = "failed" if failed else "cancelled" if any(part.state == "cancelled" for part in parts) else "succeeded"
    error = Error(f"{len(failed)} of {len(parts)} parts failed") if failed else None
    if any(part.lost for part in parts) and len(failed) == sum(part.lost for part in parts):
        if state.reason == "lost" and progress == state.progress:
            return None
        return msgspec.structs.replace(
            state, state="failed", reason="lost", run=run, seq=state.seq + 1, progress=progress, error=error,
            times=times,
        )  # fmt: skip
    times = msgspec.structs.replace(times, ended=times.updated)
    return msgspec.structs.replace(
        state, state=name, final=True, run=run, progress=progress, error=error, reason=None, times=times
    )


def _part(state: State) -> Part:
    if state.final and state.state != "cancelled":  # what was cancelled, or is lost, got no further than it did
        fraction = 1.0
    elif state.progress is not None and state.progress.total:
        fraction = min(1.0, state.progress.done / state.progress.total)
    else:
        fraction = 0.0
    weight = 1.0 if state.weight is None else state.weight
    return Part(weight, fraction, state.state, state.reason == "lost", state.run)


def _rounded(amount: float) -> float | int:
    """To thousandths, and whole numbers as such."""
    rounded = round(amount, 3)
    return int(rounded) if rounded == int(rounded) else rounded
