"""`publisher.celery` with Celery's real workers, on Redis and on folders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.integrations import faults
from tests.integrations.stage import Ends, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKER = ("-m", "celery", "-A", "tests.integrations.apps.celery_app", "worker", "--loglevel", "INFO", "-c", "4",
          "--without-mingle", "--without-gossip", "--without-heartbeat")  # fmt: skip

# What a task is reported to have come to: its end, the attempt, and the type of its error.
ENDS: Ends = {
    "succeed": ("succeeded", 1, None),
    "by_argument": ("succeeded", 1, None),
    "progress": ("succeeded", 1, None),
    "flaky": ("succeeded", 3, None),
    "hopeless": ("dead_lettered", 2, "ConnectionError"),
    "broken": ("failed", 1, "ValueError"),
    "rejected": ("dead_lettered", 1, None),
    "ignored": ("cancelled", 1, None),
    "soft": ("failed", 1, "SoftTimeLimitExceeded"),
    "limited": ("failed", 1, "TimeLimitExceeded"),
    "suicide": ("failed", 1, "WorkerLostError"),
    "nobody knows": ("failed", 1, None),
    "parent": ("succeeded", 1, None),
}
# A thread cannot be ended. On folders a hard time limit comes last, below: one in hundreds stops the pool, for billiard
# sends SIGKILL a tenth of a second after SIGTERM, to a process that may hold the lock of the pipe which all share.
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "redis": (), "folders": ("limited",), "threads": ("soft", "limited", "suicide"),
}  # fmt: skip
ARGS: dict[str, list[Any]] = {
    "by_argument": ["by_argument"], "flaky": ["flaky"], "soft": ["soft", 20], "limited": ["limited", 20],
}  # fmt: skip


LATER = pytest.mark.chaos  # what takes long, or is told on Redis already


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["redis", "folders", pytest.param("threads", marks=LATER)]
)
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    threads = ("--pool", "threads") if request.param == "threads" else ()
    ends = {task: end for task, end in ENDS.items() if task not in LEFT_OUT[request.param]}
    async with Stage("celery", [*WORKER, *threads], redis=request.param != "folders") as stage:
        await stage.begin(ends, ARGS)
        yield stage


@pytest.mark.parametrize("task", ENDS)
async def test_each_task_is_told_to_its_one_end(stage: Stage, task: str) -> None:
    if task not in stage.sent:
        pytest.skip("a thread cannot be ended, and folders see it below")
    await stage.came_to(task)


async def test_progress_and_retries_are_told(stage: Stage) -> None:
    await faults.progress_and_retries_are_told(stage)


async def test_a_task_that_a_task_sends_belongs_to_its_user(stage: Stage) -> None:
    await stage.came_to("parent")
    assert await stage.end(next(job for job in stage.seen if job.startswith("child-")))


@pytest.mark.parametrize(("kind", "end"), [("group", "succeeded"), ("chord", "succeeded"), ("broken chord", "failed")])
async def test_a_group_and_a_chord_are_wholes_of_their_parts(stage: Stage, kind: str, end: str) -> None:
    whole = await stage.send(kind)
    state = await stage.until(whole, "succeeded", "failed")
    assert state["state"] == end, stage.history(whole)
    parts = [job for job, states in stage.seen.items() if states[-1].get("parent") == whole]
    assert len(parts) == 2


async def test_what_is_revoked_is_cancelled(stage: Stage) -> None:
    jobs = [await stage.send("slow", "not yet", 20, countdown=1)]
    if "suicide" in stage.sent:
        for n in range(3):  # processes that end at once, and one that hears of it
            jobs.append(await stage.send("slow", f"revoked {n}", 20))
            await stage.runs(f"revoked {n}")
    for job in jobs:
        await stage.abort(job)
    for job in jobs:
        assert (await stage.end(job))["state"] == "cancelled"
    for job in [await stage.send("succeed") for _ in jobs]:
        assert (await stage.end(job))["state"] == "succeeded", "the pool does not go on"


async def test_ends_arrive_after_the_gateway_was_away_and_nothing_stays_lost(stage: Stage) -> None:
    await faults.the_gateway_goes_away(stage)


async def test_a_worker_that_is_asked_to_end_tells_the_end_of_its_jobs(stage: Stage) -> None:
    await faults.a_worker_is_asked_to_end(stage)


async def test_a_job_whose_worker_was_killed_is_stalled_then_lost(stage: Stage) -> None:
    await faults.a_worker_is_killed(stage)


@LATER
async def test_what_is_delivered_again_outranks_what_was_lost(stage: Stage) -> None:
    if stage.redis is None:
        pytest.skip("folders do not deliver again")
    await faults.it_is_delivered_again(stage, await faults.a_worker_is_killed(stage, "late"))


async def test_a_hard_time_limit_on_folders_fails_its_task(stage: Stage) -> None:
    """By the worker's main process, whatever becomes of the pool."""
    if stage.redis is not None:
        pytest.skip("it was told of above")
    for other in stage.workers:
        await other.leave()
    stage.work()
    state = await stage.end(await stage.send("limited", "limited", 20))
    assert (state["state"], state["error"]["type"]) == ("failed", "TimeLimitExceeded")
