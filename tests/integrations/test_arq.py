"""`publisher.arq` with arq's real workers, on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from tests.integrations import faults
from tests.integrations.stage import WITHIN, Ends, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKER = ("-m", "arq", "tests.integrations.apps.arq_app.WorkerSettings")

# What a job is reported to have come to: its end, the attempt, and the type of its error.
ENDS: Ends = {
    "succeed": ("succeeded", 1, None),
    "by_argument": ("succeeded", 1, None),
    "progress": ("succeeded", 1, None),
    "flaky": ("succeeded", 3, None),
    "hopeless": ("dead_lettered", 2, "ConnectionError"),
    "broken": ("failed", 1, "ValueError"),
    "limited": ("failed", 1, "TimeoutError"),
}
ARGS: dict[str, list[Any]] = {"by_argument": ["by_argument"], "flaky": ["flaky"], "limited": ["limited", 20]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with Stage("arq", WORKER) as stage:
        await stage.begin(ENDS, ARGS)
        yield stage


async def acknowledged(stage: Stage) -> None:
    """Wait until arq knows of all that was done. What is cut short before that it has done again, told or not."""
    assert stage.redis is not None
    async with Redis.from_url(stage.redis.url) as redis, asyncio.timeout(WITHIN):
        while await redis.keys("arq:in-progress:*"):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("task", ENDS)
async def test_each_task_is_told_to_its_one_end(stage: Stage, task: str) -> None:
    await stage.came_to(task)


async def test_progress_and_retries_are_told(stage: Stage) -> None:
    await faults.progress_and_retries_are_told(stage)


async def test_a_task_that_no_worker_knows_stays_queued(stage: Stage) -> None:
    await faults.nobody_knows_a_task(stage)


async def test_ends_arrive_after_the_gateway_was_away_and_nothing_stays_lost(stage: Stage) -> None:
    await faults.the_gateway_goes_away(stage)


async def test_what_is_aborted_is_cancelled(stage: Stage) -> None:
    job = await stage.send("slow", "aborted", 20)
    await stage.until(job, "started")
    await stage.abort(job)
    assert (await stage.end(job))["state"] == "cancelled"


async def test_a_worker_that_is_asked_to_end_leaves_its_jobs_to_be_tried_again(stage: Stage) -> None:
    job = await stage.send("slow", "last", 20)
    await stage.until(job, "started")
    stage.workers[-1].terminate()
    await stage.until(job, "retrying")
    await stage.workers[-1].ended()
    stage.work()
    assert (await stage.end(job))["attempt"] == 2
    await acknowledged(stage)
    await stage.workers[-1].leave()


async def test_a_job_whose_worker_was_killed_is_lost(stage: Stage) -> None:
    await acknowledged(stage)
    await faults.a_worker_is_killed(stage)


@pytest.mark.chaos  # arq waits for ten seconds more than the longest time that any job may take
async def test_what_is_delivered_again_outranks_what_was_lost(stage: Stage) -> None:
    await acknowledged(stage)
    await faults.it_is_delivered_again(stage, await faults.a_worker_is_killed(stage), attempt=2)
