"""`publisher.dramatiq` with Dramatiq's real workers, on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.integrations import faults
from tests.integrations.stage import Ends, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKER = ("-m", "dramatiq", "tests.integrations.apps.dramatiq_app", "--processes", "2", "--threads", "4")

# What a task is reported to have come to: its end, the attempt, and the type of its error.
ENDS: Ends = {
    "succeed": ("succeeded", 1, None),
    "by_argument": ("succeeded", 1, None),
    "progress": ("succeeded", 1, None),
    "flaky": ("succeeded", 3, None),
    "hopeless": ("dead_lettered", 2, "ConnectionError"),
    "broken": ("dead_lettered", 1, "ValueError"),
    "limited": ("dead_lettered", 1, "TimeLimitExceeded"),
    "nobody knows": ("dead_lettered", 1, None),
}
ARGS: dict[str, list[Any]] = {"by_argument": ["by_argument"], "flaky": ["flaky"], "limited": ["limited", 20]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with Stage("dramatiq", WORKER) as stage:
        await stage.begin(ENDS, ARGS)
        yield stage


@pytest.mark.parametrize("task", ENDS)
async def test_each_task_is_told_to_its_one_end(stage: Stage, task: str) -> None:
    await stage.came_to(task)


async def test_progress_and_retries_are_told(stage: Stage) -> None:
    await faults.progress_and_retries_are_told(stage)


async def test_ends_arrive_after_the_gateway_was_away_and_nothing_stays_lost(stage: Stage) -> None:
    await faults.the_gateway_goes_away(stage, broken="dead_lettered")


async def test_a_worker_that_is_asked_to_end_tells_the_end_of_its_jobs(stage: Stage) -> None:
    await faults.a_worker_is_asked_to_end(stage)


async def test_what_is_delivered_again_outranks_what_was_lost(stage: Stage) -> None:
    job = await faults.a_worker_is_killed(stage)
    await faults.it_is_delivered_again(stage, job)
