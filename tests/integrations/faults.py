"""What befalls workers and gateways, the same for every queue."""

from __future__ import annotations

import asyncio
import subprocess
import time
from contextlib import suppress

from tests.integrations.apps.work import LEASE
from tests.integrations.stage import SOON, WITHIN, Stage


async def progress_and_retries_are_told(stage: Stage) -> None:
    assert (await stage.came_to("progress"))["progress"] == {"done": 3, "total": 3}
    await stage.came_to("flaky")
    assert [each for each in stage.history(stage.sent["flaky"]) if each[0] in ("retrying", "succeeded")] == [
        ("retrying", 1), ("retrying", 2), ("succeeded", 3),
    ]  # fmt: skip


async def the_gateway_goes_away(stage: Stage, broken: str = "failed") -> None:
    """Ends arrive when it is there again, of jobs that it heard nothing of meanwhile too, and nothing stays lost."""
    found = await stage.send("slow", "lost and found", 3 * LEASE)
    await stage.until(found, "started")
    await stage.proxy.refuse()
    jobs = [await stage.send("slow", f"away {n}", 0.5) for n in range(2)]
    fails = await stage.send("broken")
    await stage.until(found, "lost")
    for job in (*jobs, fails):
        assert {state for state, _ in stage.history(job)} <= {"queued"}, "a worker reaches the gateway"
    await stage.proxy.accept()
    for job in (*jobs, found):
        assert (await stage.end(job))["state"] == "succeeded"
    assert (await stage.end(fails))["state"] == broken


async def nobody_knows_a_task(stage: Stage) -> None:
    """Of a queue that tells nobody: it is seen to wait, and its worker goes on."""
    job = await stage.send("nobody knows")
    await stage.until(job, "queued")
    assert (await stage.end(await stage.send("succeed")))["state"] == "succeeded"
    assert stage.history(job) == [("queued", 1)]


async def a_worker_is_asked_to_end(stage: Stage, poke: str | None = None) -> None:
    """It finishes what it has, and tells of it before it is gone, also when the gateway was away at that moment.

    `poke` is a task without which a worker may not notice that it is to end.
    """
    job = await stage.send("slow", "last", 1.0)
    await stage.until(job, "started")
    stage.workers[-1].terminate()
    await stage.proxy.refuse()
    await stage.done("last")
    await stage.proxy.accept()
    assert (await stage.end(job))["state"] == "succeeded"
    end = time.monotonic() + WITHIN
    while poke is not None and stage.workers[-1].process.poll() is None and time.monotonic() < end:
        await stage.send(poke)
        with suppress(subprocess.TimeoutExpired):
            await stage.workers[-1].ended(0.5)
    await stage.workers[-1].ended()


async def a_worker_is_killed(stage: Stage, task: str = "slow") -> str:
    """What it had is stalled, then lost, in time. Returns the job."""
    for other in stage.workers:
        await other.leave()  # or it may be the one that is given the job
    key = f"killed {len(stage.workers)}"
    job = await stage.send(task, key, 20)
    await stage.until(job, "queued")  # of one that begins at once this may come too late, and there is no worker yet
    worker = stage.work()
    await stage.until(job, "started")
    await stage.runs(key)  # RQ loses for good a job that it has handed over and not noted as started
    worker.kill()
    killed = time.monotonic()
    await stage.until(job, "stalled", within=SOON)
    assert not (await stage.until(job, "lost", within=killed + SOON - time.monotonic()))["final"]
    return job


async def it_is_delivered_again(
    stage: Stage, job: str, attempt: int = 1, poke: str | None = None, workers: int = 1
) -> None:
    """To another worker, whose word counts; `poke` is a task without which an idle worker does not look for it."""
    for _ in range(workers):
        stage.work()
    end = time.monotonic() + 60
    while stage.history(job)[-1][0] != "succeeded" and time.monotonic() < end:
        if poke is not None:
            await stage.send(poke)
        await asyncio.sleep(0.5)
    assert (await stage.end(job))["attempt"] == attempt
