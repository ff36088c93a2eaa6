"""`publisher.rq` with RQ's real workers, of all three kinds, on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.integrations import faults
from tests.integrations.stage import Ends, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKER = ("-m", "tests.integrations.apps.rq_app")

# What a job is reported to have come to: its end, the attempt, and the type of its error.
ENDS: Ends = {
    "succeed": ("succeeded", 1, None),
    "by_argument": ("succeeded", 1, None),
    "progress": ("succeeded", 1, None),
    "flaky": ("succeeded", 3, None),
    "hopeless": ("dead_lettered", 2, "ConnectionError"),
    "broken": ("failed", 1, "ValueError"),
    "limited": ("failed", 1, "JobTimeoutException"),
    "suicide": ("failed", 1, None),
    "nobody knows": ("failed", 1, "ValueError"),
    "unreadable": ("failed", 1, "DeserializationError"),
}
LEFT_OUT: dict[str, tuple[str, ...]] = {"SimpleWorker": ("suicide",)}  # there is no process but the worker's
ARGS: dict[str, list[Any]] = {"by_argument": ["by_argument"], "flaky": ["flaky"], "limited": ["limited", 20]}


LATER = pytest.mark.chaos  # what is told of the first already


@pytest_asyncio.fixture(
    scope="module", loop_scope="module",
    params=["Worker", pytest.param("SpawnWorker", marks=LATER), pytest.param("SimpleWorker", marks=LATER)],
)  # fmt: skip
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    ends = {task: end for task, end in ENDS.items() if task not in LEFT_OUT.get(request.param, ())}
    async with Stage("rq", [*WORKER, request.param]) as stage:
        await stage.begin(ends, ARGS)
        yield stage


@pytest.mark.parametrize("task", ENDS)
async def test_each_task_is_told_to_its_one_end(stage: Stage, task: str) -> None:
    if task not in stage.sent:
        pytest.skip("there is no process but the worker's")
    await stage.came_to(task)


async def test_progress_and_retries_are_told(stage: Stage) -> None:
    await faults.progress_and_retries_are_told(stage)


async def test_ends_arrive_after_the_gateway_was_away_and_nothing_stays_lost(stage: Stage) -> None:
    await faults.the_gateway_goes_away(stage)


async def test_what_is_stopped_is_cancelled(stage: Stage) -> None:
    if "suicide" not in stage.sent:
        pytest.skip("there is no process that could be ended")
    job = await stage.send("slow", "stopped", 20)
    await stage.runs("stopped")
    await stage.abort(job)
    assert (await stage.end(job))["state"] == "cancelled"


async def test_a_worker_that_is_asked_to_end_tells_the_end_of_its_jobs(stage: Stage) -> None:
    await faults.a_worker_is_asked_to_end(stage)


async def test_a_job_of_a_killed_worker_is_lost_and_failed_when_it_is_found(stage: Stage) -> None:
    job = await faults.a_worker_is_killed(stage)
    stage.work()
    state = await stage.end(job)
    assert (state["state"], state["error"]["type"]) == ("failed", "AbandonedJobError")


async def test_a_job_of_a_killed_worker_is_run_again_where_it_may_be(stage: Stage) -> None:
    job = await faults.a_worker_is_killed(stage, "again")
    await faults.it_is_delivered_again(stage, job, attempt=2)
