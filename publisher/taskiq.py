"""taskiq's tasks as jobs.

    from publisher.taskiq import JobMiddleware

    broker = RedisStreamBroker(url).with_middlewares(SmartRetryMiddleware(), JobMiddleware())

    await render.kicker().with_labels(ringcast_user="42").kiq(7)      # the job's id is the task's
    publisher.jobs.current().progress(1, 3)                           # in a task
"""

from __future__ import annotations

from collections.abc import Container
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from taskiq import TaskiqMiddleware
from taskiq.exceptions import NoResultError

from publisher.job import Job
from publisher.jobs import JobReporter
from publisher.tasks import Tasks, UserOf

RETRIES = "_retries"  # the label by which taskiq's own middleware count


@dataclass(slots=True)
class Running:
    job: Job
    error: BaseException | None = None


# Of the coroutine that executes: a retry may begin in this process before the attempt before it is dealt with, and its
# sender has counted up the labels of both.
_running: ContextVar[Running | None] = ContextVar("ringcast taskiq", default=None)


class JobMiddleware(TaskiqMiddleware):
    """Tells of every task that this process sends or runs; add it after middleware that retries."""

    def __init__(
        self, reporter: JobReporter | None = None, *, user: UserOf | None = None, tasks: Container[str] | None = None,
        results: bool = False,
    ) -> None:  # fmt: skip
        """`user` makes the user of a task from its name, args and kwargs, where its label `ringcast_user` does not
        say; tasks that a task sends belong to its user. `tasks` names those that are told of, else all are. `results`
        tells users what tasks return. Raises ValueError for a URL or key that cannot work.
        """
        super().__init__()
        self._tasks, self._results = Tasks(reporter, user, tasks), results

    # ---------------------------------------------------------------- who sends

    async def pre_send(self, message: Any) -> Any:
        if self._tasks.told(message.task_name):
            message.labels.update(self._about(message))
            running = _running.get()
            if running is not None and running.job.id == message.task_id:
                running.job.retrying(running.error)  # before it is sent: the next attempt may begin at once
                await running.job.asettle()
        return message

    def post_send(self, message: Any) -> None:
        if self._tasks.told(message.task_name) and _attempt(message) == 1:
            self._job(message).queued()

    # ---------------------------------------------------------------- a worker

    def pre_execute(self, message: Any) -> Any:
        if self._tasks.told(message.task_name):
            _running.set(Running(self._job(message).__enter__()))
        return message

    def on_error(self, message: Any, result: Any, exception: BaseException) -> None:
        if (running := _running.get()) is not None:
            running.error = exception

    async def post_execute(self, message: Any, result: Any) -> None:
        running = _running.get()
        if running is None:
            return
        _running.set(None)
        job, error = running.job, running.error
        job.leave()
        silent = isinstance(error, NoResultError)  # the task's own, which wants no result; else one that retries
        if isinstance(result.error, NoResultError) and not silent:
            job.retrying(error)  # by a scheduler
        elif not result.is_err or silent:
            job.succeeded(result.return_value if self._results else None)
        elif job.attempt > 1:
            job.dead_lettered(error)  # it was tried again until it was given up
        else:
            job.failed(error)
        await job.asettle()  # taskiq acknowledges after this, unless told to do so before

    async def shutdown(self) -> None:
        await self._tasks.reporter.aclose()

    # ---------------------------------------------------------------- inside

    def _about(self, message: Any) -> dict[str, Any]:
        return self._tasks.about(message.task_name, message.args, message.kwargs, message.labels)

    def _job(self, message: Any) -> Job:
        return self._tasks.job(message.task_id, message.task_name, self._about(message), _attempt(message))


def _attempt(message: Any) -> int:
    return int(message.labels.get(RETRIES) or 0) + 1
