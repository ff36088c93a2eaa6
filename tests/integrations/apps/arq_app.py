"""arq's worker and application in these tests."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from arq import create_pool, func
from arq.connections import RedisSettings
from arq.jobs import Job
from arq.worker import Retry

from publisher.arq import report
from publisher.jobs import current
from tests.integrations.apps import work

USER = "it"
Context = dict[str, Any]


async def succeed(ctx: Context) -> str:
    return work.succeed()


async def by_argument(ctx: Context, what: object) -> None:
    pass


async def progress(ctx: Context) -> None:
    async def each() -> Any:
        for n in range(3):
            await asyncio.sleep(0.1)
            yield n

    async for _ in current().atrack(each(), 3):
        pass


async def flaky(ctx: Context, key: str) -> None:
    try:
        work.flaky(key)
    except ConnectionError as error:
        raise Retry(0.5) from error


async def hopeless(ctx: Context) -> None:
    try:
        work.hopeless()
    except ConnectionError as error:
        raise Retry(0.5) from error


async def broken(ctx: Context) -> None:
    work.broken()


async def slow(ctx: Context, key: str, seconds: float) -> None:
    if work.executions(key) == 1:
        await asyncio.sleep(seconds)


async def measured(ctx: Context, key: str) -> None:
    began = time.perf_counter()
    for n in range(work.STEPS):
        await asyncio.sleep(0.01)
        current().progress(n, work.STEPS)
    work.took(key, began)


settings = RedisSettings.from_dsn(work.REDIS)
reporter = work.reporter()


@report(reporter, user=lambda name, args, kwargs: USER if "by_argument" in args else None)
class WorkerSettings:
    functions = (
        succeed, by_argument, progress, flaky, func(hopeless, max_tries=2), broken, slow, measured,
        func(slow, name="limited", timeout=0.5),
    )  # fmt: skip
    redis_settings = settings
    allow_abort_jobs = True
    poll_delay = 0.05
    job_timeout = 21
    job_completion_wait = 0


loop = asyncio.new_event_loop()  # the application's
pool = loop.run_until_complete(create_pool(settings))


def send(name: str, args: list[Any], options: dict[str, Any]) -> str:
    user = {"ringcast_user": USER} if name != "by_argument" else {}
    job = loop.run_until_complete(pool.enqueue_job(name, *args, **user))
    assert job is not None
    reporter.job(job.job_id, user=USER, name=name).queued()
    return str(job.job_id)


def abort(id: str) -> None:
    async def ask() -> None:
        with suppress(asyncio.CancelledError):
            await Job(id, pool).abort(timeout=10)

    loop.run_until_complete(ask())
