"""arq's jobs as jobs that users see.

    from publisher.arq import report

    @report()
    class WorkerSettings:
        functions = [render]

    await pool.enqueue_job("render", 7, ringcast_user="42")      # the id is arq's; `render` is not given this
    publisher.jobs.current().progress(1, 3)                      # in a function

arq's hooks do not say what became of a job, so the functions are wrapped, and what arq itself made of one that was
cancelled is read from its result.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from arq.jobs import Job as Queued
from arq.worker import Retry, RetryJob, func

from publisher.job import Job
from publisher.jobs import JobReporter
from publisher.tasks import FIELDS, Tasks, UserOf

S = TypeVar("S", bound=type)
MAX_TRIES = 5  # arq's own, where settings have none
TIMEOUT = 300.0
SLACK = 0.05  # seconds that an execution begins after its time does


def report(
    reporter: JobReporter | None = None, *, user: UserOf | None = None, tasks: Container[str] | None = None,
    results: bool = False,
) -> Callable[[S], S]:  # fmt: skip
    """Tell of every job that a worker of the decorated settings runs.

    `user` makes the user of a job from its function's name, args and kwargs, where its keyword `ringcast_user` does
    not say. `tasks` names the functions that are told of, else all are. `results` tells users what they return. Raises
    ValueError for a URL or key that cannot work.
    """

    def decorate(settings: S) -> S:
        worker = _Worker(Tasks(reporter, user, tasks), results, settings)
        found: Any = settings
        found.functions = [worker.wrapped(func(each)) for each in getattr(settings, "functions", ())]
        found.cron_jobs = [worker.wrapped(each) for each in getattr(settings, "cron_jobs", None) or ()]
        found.after_job_end = _both(worker.decided, getattr(settings, "after_job_end", None))
        found.on_shutdown = _both(worker.close, getattr(settings, "on_shutdown", None))
        return settings

    return decorate


@dataclass(slots=True)
class Open:
    """Cancelled, and arq alone knows why: it was aborted, took too long, or is run again."""

    job: Job
    over: bool  # its time


class _Worker:
    def __init__(self, tasks: Tasks, results: bool, settings: type) -> None:
        self._tasks, self._results = tasks, results
        self._max_tries: int = getattr(settings, "max_tries", MAX_TRIES)
        self._timeout = _seconds(getattr(settings, "job_timeout", TIMEOUT))
        self._again = bool(getattr(settings, "retry_jobs", True))
        self._open: dict[str, Open] = {}  # by arq's id

    def wrapped(self, function: Any) -> Any:
        """The function, or the job of a calendar, that tells of its executions."""
        name, inner = function.name, function.coroutine
        tries = function.max_tries or self._max_tries
        timeout = self._timeout if function.timeout_s is None else function.timeout_s

        @functools.wraps(inner)
        async def told(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            given = {field: kwargs.pop(field) for field in FIELDS if field in kwargs}
            if not self._tasks.told(name):
                return await inner(ctx, *args, **kwargs)
            about = self._tasks.about(name, args, kwargs, given)
            job = self._tasks.job(ctx["job_id"], name, about, ctx["job_try"]).__enter__()
            began = time.monotonic()
            try:
                result = await inner(ctx, *args, **kwargs)
            except (Retry, RetryJob) as error:
                again = self._again and job.attempt < tries
                (job.retrying if again else job.dead_lettered if self._again else job.failed)(
                    error.__cause__ or error.__context__
                )
                raise
            except asyncio.CancelledError:
                self._open[ctx["job_id"]] = Open(job, time.monotonic() - began >= timeout - SLACK)
                raise
            except BaseException as error:
                job.failed(error)
                raise
            else:
                job.succeeded(result if self._results else None)
                return result
            finally:
                job.leave()
                if job.ended:
                    await job.asettle()

        return replace(function, coroutine=told)

    async def decided(self, ctx: dict[str, Any]) -> None:
        """What became of a job that was cancelled; after arq has dealt with it."""
        found = self._open.pop(ctx["job_id"], None)
        if found is None:
            return
        result = None if found.over else await Queued(ctx["job_id"], ctx["redis"]).result_info()
        if found.over:
            found.job.failed(TimeoutError("It took too long"))
        elif result is not None and isinstance(result.result, asyncio.CancelledError):
            found.job.cancelled("It was aborted")
        elif result is not None:
            found.job.failed(result.result if isinstance(result.result, BaseException) else None)
        else:
            found.job.retrying("Its worker was asked to end")
        await found.job.asettle()

    async def close(self, ctx: dict[str, Any]) -> None:
        await self._tasks.reporter.aclose()


def _both(ours: Callable[..., Awaitable[None]], theirs: Callable[..., Awaitable[Any]] | None) -> Any:
    """A hook that is ours, and the application's after it."""
    if theirs is None:
        return ours

    async def hook(ctx: dict[str, Any]) -> None:
        await ours(ctx)
        await theirs(ctx)

    return hook


def _seconds(given: Any) -> float:
    return float(given.total_seconds() if hasattr(given, "total_seconds") else given)
