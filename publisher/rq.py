"""RQ's jobs as jobs that users see.

    rq worker --worker-class publisher.rq.Worker                # RINGCAST_URL and RINGCAST_API_KEY say whom to tell

    queue.enqueue(render, 7, meta={"ringcast_user": "42"})      # the id is RQ's
    publisher.jobs.current().progress(1, 3)                     # in a job

A worker runs each job in a process of its own that lives no longer than it. What such a process could not tell, because
the gateway was away, it leaves to the worker, in memory that both share; what it cannot tell, because it was killed,
the worker knows. What a killed worker had is found by another one's maintenance, minutes later, which then tells of it.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import tempfile
from collections.abc import Container
from typing import Any, ClassVar

import msgspec
from rq.exceptions import DeserializationError
from rq.worker import SimpleWorker as RQSimpleWorker
from rq.worker import SpawnWorker as RQSpawnWorker
from rq.worker import Worker as RQWorker

from publisher.job import Failure, Job
from publisher.jobs import JobReporter
from publisher.reports import Report
from publisher.tasks import Tasks, UserOf

LEFT = 128 << 10  # bytes that a report to be left takes at most
ATTEMPT = "ringcast_attempt"  # in a job's meta
_LENGTH = 4
_FD = "RINGCAST_RQ_LEFT"  # the variable that tells a spawned process what it shares with its worker

log = logging.getLogger("ringcast.jobs")


class Telling:
    """What all workers do. The attributes are an application's to set, in a class of its own."""

    reporter: ClassVar[JobReporter | None] = None  # else one of RINGCAST_URL and RINGCAST_API_KEY
    user: ClassVar[UserOf | None] = None  # of a job's function, args and kwargs, where its meta does not name one
    tasks: ClassVar[Container[str] | None] = None  # the functions that are told of, else all are
    results: ClassVar[bool] = False  # whether users are told what jobs return

    _stopped_job_id: Any  # RQ's: the job that was asked to stop
    _exc_handlers: list[Any]
    is_horse: bool  # whether this is the process of one job

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        user = type(self).__dict__.get("user", type(self).user)
        user = user.__func__ if isinstance(user, staticmethod) else user
        self._tasks = Tasks(self.reporter, user, self.tasks)
        self._told: Job | None = None  # of the execution that goes on in this process
        self._left = mmap.mmap(-1, _LENGTH + LEFT)
        super().__init__(*args, **kwargs)

    # ---------------------------------------------------------------- where it runs

    def perform_job(self, job: Any, queue: Any, execution: Any) -> bool:
        told = self._job(job)
        if told is None:
            return bool(super().perform_job(job, queue, execution))  # type: ignore[misc]  # of RQ's worker
        self._told = told.__enter__()
        try:
            return bool(super().perform_job(job, queue, execution))  # type: ignore[misc]
        finally:
            self._told = None
            told.leave()
            if told.ended and not told.settle() and self.is_horse:
                self._leave(told)

    def handle_job_success(self, job: Any, *args: Any, **kwargs: Any) -> None:
        super().handle_job_success(job, *args, **kwargs)  # type: ignore[misc]
        if self._told is not None:
            self._told.succeeded(job._result if self.results else None)

    def handle_job_retry(self, job: Any, queue: Any, retry: Any, *args: Any, **kwargs: Any) -> None:
        given_up = bool(job.number_of_retries) and job.number_of_retries >= retry.max
        if self._told is not None and given_up:
            self._told.dead_lettered("That was its last retry")
        elif self._told is not None:
            self._again(self._told, job, None)
        super().handle_job_retry(job, queue, retry, *args, **kwargs)  # type: ignore[misc]

    def handle_job_failure(self, job: Any, *args: Any, exc_string: str = "", **kwargs: Any) -> None:
        # In the process that ran it, or, when that was killed, in the worker's own.
        again, stopped = bool(job.should_retry), self._stopped_job_id == job.id
        told = self._told or self._job(job)
        if told is not None:
            error = sys.exc_info()[1] or exc_string
            if stopped:
                told.cancelled("It was stopped")
            else:
                self._failed(told, job, error, again=again)
        super().handle_job_failure(job, *args, exc_string=exc_string, **kwargs)  # type: ignore[misc]

    # ---------------------------------------------------------------- the worker's own process

    def execute_job(self, job: Any, queue: Any) -> None:
        self._left[:_LENGTH] = bytes(_LENGTH)
        try:
            super().execute_job(job, queue)  # type: ignore[misc]
        finally:
            length = int.from_bytes(self._left[:_LENGTH], "little")
            if length:
                self._tasks.reporter.tell(msgspec.json.decode(self._left[_LENGTH : _LENGTH + length], type=Report))

    def clean_registries(self) -> None:
        # Only here: a worker that spawns pickles its handlers, and there is nothing of ours to be called elsewhere.
        self._exc_handlers.insert(0, self._abandoned)
        try:
            super().clean_registries()  # type: ignore[misc]
        finally:
            self._exc_handlers.remove(self._abandoned)

    def teardown(self) -> None:
        super().teardown()  # type: ignore[misc]
        self._tasks.reporter.flush()

    # ---------------------------------------------------------------- inside

    def _abandoned(self, job: Any, kind: type[BaseException], error: BaseException, trace: object) -> None:
        """Its worker died, and RQ is about to run it again or to put it among the failed; what is raised stops that."""
        try:
            if (told := self._job(job)) is not None:
                self._failed(told, job, error, again=bool(job.retries_left))
        except Exception:
            log.exception("job %s, whose worker died, is not told of", job.id)

    def _failed(self, told: Job, job: Any, error: Failure, *, again: bool) -> None:
        if again:
            self._again(told, job, error)
        elif told.attempt > 1:
            told.dead_lettered(error)  # it was tried again until it was given up
        else:
            told.failed(error)

    def _again(self, told: Job, job: Any, error: Failure) -> None:
        """Before RQ saves the job, to be run again maybe at once; its own count is of what is left."""
        told.retrying(error)
        told.settle()
        job.meta[ATTEMPT] = told.attempt + 1

    def _leave(self, told: Job) -> None:
        """Let the worker tell it: this process is about to end."""
        report = told.report()
        if report is not None:
            written = msgspec.json.encode(report)
            if len(written) <= LEFT:
                self._left[_LENGTH : _LENGTH + len(written)] = written
                self._left[:_LENGTH] = len(written).to_bytes(_LENGTH, "little")

    def _job(self, job: Any) -> Job | None:
        """The job that is told of; None where it is not to be."""
        try:
            name, args, kwargs = job.func_name, job.args or (), job.kwargs or {}
        except DeserializationError:  # RQ fails it; what is known of it is its meta
            name, args, kwargs = "", (), {}
        if not self._tasks.told(name):
            return None
        about = self._tasks.about(name, args, kwargs, job.meta)
        return self._tasks.job(job.id, name, about, int(job.meta.get(ATTEMPT, 1)))


class Worker(Telling, RQWorker):
    """RQ's worker, which runs each job in a process of its own."""


class SpawnWorker(Telling, RQSpawnWorker):
    """RQ's worker that runs each job in a new interpreter, where a copy of a process is not safe."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inherited = os.environ.pop(_FD, None)  # else a worker that the job starts would take it for its own
        self._file = tempfile.TemporaryFile() if inherited is None else os.fdopen(int(inherited), "r+b")  # noqa: SIM115
        self._file.truncate(_LENGTH + LEFT)
        self._left = mmap.mmap(self._file.fileno(), _LENGTH + LEFT)

    def fork_work_horse(self, job: Any, queue: Any) -> None:
        os.set_inheritable(self._file.fileno(), True)
        os.environ[_FD] = str(self._file.fileno())
        try:
            super().fork_work_horse(job, queue)
        finally:
            del os.environ[_FD]


class SimpleWorker(Telling, RQSimpleWorker):
    """RQ's worker that runs jobs in its own process, one after another."""
