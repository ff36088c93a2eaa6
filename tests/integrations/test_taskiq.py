"""`publisher.taskiq` with taskiq's real workers, on Redis."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.integrations import faults
from tests.integrations.stage import SOON, Ends, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKER = ("-m", "taskiq", "worker", "tests.integrations.apps.taskiq_app:broker", "--workers", "2",
          "--max-threadpool-threads", "4")  # fmt: skip

# What a task is reported to have come to: its end, the attempt, and the type of its error.
ENDS: Ends = {
    "succeed": ("succeeded", 1, None),
    "by_argument": ("succeeded", 1, None),
    "progress": ("succeeded", 1, None),
    "awaited": ("succeeded", 1, None),
    "flaky": ("succeeded", 3, None),
    "hopeless": ("dead_lettered", 2, "ConnectionError"),
    "broken": ("failed", 1, "ValueError"),
    "limited": ("failed", 1, "TimeoutError"),
}
ARGS: dict[str, list[Any]] = {"by_argument": ["by_argument"], "flaky": ["flaky"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with Stage("taskiq", WORKER) as stage:
        await stage.begin(ENDS, ARGS)
        yield stage


@pytest.mark.parametrize("task", ENDS)
async def test_each_task_is_told_to_its_one_end(stage: Stage, task: str) -> None:
    await stage.came_to(task)


async def test_progress_and_retries_are_told(stage: Stage) -> None:
    await faults.progress_and_retries_are_told(stage)


async def test_a_task_that_no_worker_knows_stays_queued(stage: Stage) -> None:
    await faults.nobody_knows_a_task(stage)


async def test_ends_arrive_after_the_gateway_was_away_and_nothing_stays_lost(stage: Stage) -> None:
    await faults.the_gateway_goes_away(stage)


async def test_a_worker_that_is_asked_to_end_tells_the_end_of_its_jobs(stage: Stage) -> None:
    await faults.a_worker_is_asked_to_end(stage, poke="succeed")  # with uvloop it is rare that one is needed


async def test_what_is_delivered_again_outranks_what_was_lost(stage: Stage) -> None:
    job = await faults.a_worker_is_killed(stage)
    await faults.it_is_delivered_again(stage, job, poke="succeed")


async def test_a_task_whose_process_was_killed_is_lost_and_delivered_again(stage: Stage) -> None:
    """One of the worker's; the others go on, and there is a new one in its place."""
    job = await stage.send("slow", "one of two", 20)
    await stage.until(job, "started")
    await stage.runs("one of two")  # it is told of as started just before it is
    os.kill(int((stage.folder / "one of two.pid").read_text()), signal.SIGKILL)
    await stage.until(job, "lost", within=SOON)
    await faults.it_is_delivered_again(stage, job, poke="succeed", workers=0)


@pytest.mark.chaos  # of an option that few take
async def test_a_task_whose_process_of_a_pool_was_killed_has_failed() -> None:
    async with Stage("taskiq", [*WORKER, "--use-process-pool"]) as stage:
        assert (await stage.end(await stage.send("succeed")))["state"] == "succeeded"
        state = await stage.end(await stage.send("suicide"))
        assert (state["state"], state["error"]["type"]) == ("failed", "BrokenProcessPool")
