"""Dramatiq's messages as jobs.

    from publisher.dramatiq import JobMiddleware

    broker.add_middleware(JobMiddleware())           # where the broker is made, in whoever sends and in the workers

    render.send_with_options(args=(7,), ringcast_user="42")      # the job's id is the message's
    publisher.jobs.current().progress(1, 3)                      # in an actor
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from dramatiq import Middleware

from publisher.job import Failure, Job
from publisher.jobs import JobReporter
from publisher.tasks import Tasks, UserOf


@dataclass(slots=True)
class Running:
    job: Job
    retries: int  # that the message had when this began; Dramatiq counts them up where another follows
    error: BaseException | None = None
    done: bool = False  # it ran to its end


class JobMiddleware(Middleware):
    """Tells of every message that this process sends or works on; add it anywhere among the others."""

    def __init__(
        self, reporter: JobReporter | None = None, *, user: UserOf | None = None, tasks: Container[str] | None = None,
        results: bool = False,
    ) -> None:  # fmt: skip
        """`user` makes the user of a message from its actor's name, args and kwargs, where its option `ringcast_user`
        does not say; messages that an actor sends belong to its user. `tasks` names the actors that are told of, else
        all are. `results` tells users what actors return. Raises ValueError for a URL or key that cannot work.
        """
        self._tasks, self._results = Tasks(reporter, user, tasks), results
        # By the message's id and the thread: the next attempt may begin in another before this one is dealt with.
        self._running: dict[tuple[str, int], Running] = {}

    @property
    def actor_options(self) -> set[str]:
        return {"ringcast_user"}

    # ---------------------------------------------------------------- who sends

    def before_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if self._tasks.told(message.actor_name):
            message.options.update(self._about(message))

    def after_enqueue(self, broker: Any, message: Any, delay: int | None) -> None:
        if self._tasks.told(message.actor_name) and not message.options.get("retries"):
            self._job(message).queued()

    # ---------------------------------------------------------------- a worker's threads

    def before_process_message(self, broker: Any, message: Any) -> None:
        if self._tasks.told(message.actor_name):
            job = self._job(message).__enter__()
            self._running[_here(message)] = Running(job, message.options.get("retries", 0))

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        running = self._running.get(_here(message))
        if running is not None:
            running.job.leave()
            running.error, running.done = exception, True
            if exception is None and not message.failed:
                running.job.succeeded(result if self._results else None)

    def after_skip_message(self, broker: Any, message: Any) -> None:
        running = self._running.get(_here(message))
        if running is not None:
            running.job.leave()
        elif self._tasks.told(message.actor_name):  # a middleware before this one skipped it
            self._running[_here(message)] = Running(self._job(message), message.options.get("retries", 0))

    # What follows an exception other middleware decides, and all of it has had its turn when this is acknowledged.

    def before_ack(self, broker: Any, message: Any) -> None:
        running = self._running.pop(_here(message), None)
        if running is None:
            return  # of a delayed message, which goes on under the same id
        job = running.job
        if not running.done:
            job.cancelled("It was skipped")
        elif message.options.get("retries", 0) > running.retries:
            job.retrying(running.error)
        else:
            job.failed(running.error)  # where nothing retries; passed over where it succeeded
        job.settle()

    def before_nack(self, broker: Any, message: Any) -> None:
        running = self._running.pop(_here(message), None)
        error: Failure = None if running is None else running.error
        if running is not None:
            job = running.job
        elif self._tasks.told(message.actor_name):
            job, error = self._job(message), f"This worker knows no actor {message.actor_name}"
        else:
            return
        job.dead_lettered(error)
        job.settle()

    def after_worker_shutdown(self, broker: Any, worker: Any) -> None:
        self._tasks.reporter.close()  # its processes end without the interpreter's own farewell

    # ---------------------------------------------------------------- inside

    def _about(self, message: Any) -> dict[str, Any]:
        return self._tasks.about(message.actor_name, message.args, message.kwargs, message.options)

    def _job(self, message: Any) -> Job:
        attempt = message.options.get("retries", 0) + 1
        return self._tasks.job(message.message_id, message.actor_name, self._about(message), attempt)


def _here(message: Any) -> tuple[str, int]:
    return message.message_id, get_ident()
