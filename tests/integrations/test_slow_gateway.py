"""A gateway that takes reports and does not answer costs a job nothing of its own time."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from tests.integrations import test_arq, test_celery, test_dramatiq, test_rq, test_taskiq
from tests.integrations.stage import WITHIN, Stage

PAIRS = 15
WORKERS = {
    "celery": test_celery.WORKER, "celery on folders": test_celery.WORKER, "rq": test_rq.WORKER,
    "arq": test_arq.WORKER, "dramatiq": test_dramatiq.WORKER, "taskiq": test_taskiq.WORKER,
}  # fmt: skip


async def took(stage: Stage, key: str) -> float:
    """How long a job measured itself to take."""
    await stage.send("measured", key)
    file, end = stage.folder / f"{key}.took", time.monotonic() + WITHIN
    while not file.exists() or not file.read_text():
        assert time.monotonic() < end, f"{key} does not end\n{stage.log}"
        await asyncio.sleep(0.05)
    return float(file.read_text())


@pytest.mark.chaos  # measures
@pytest.mark.parametrize("queue", WORKERS)
async def test_the_jobs_own_duration_grows_by_less_than_a_hundredth(queue: str) -> None:
    async with Stage(queue.split()[0], WORKERS[queue], redis="folders" not in queue) as stage:
        await took(stage, "first")
        grew = []
        for n in range(PAIRS):
            well = await took(stage, f"well {n}")
            stage.proxy.stall("/v1/jobs")
            slow = await took(stage, f"slow {n}")
            stage.proxy.heal("/v1/jobs")
            stage.proxy.cut("/v1/jobs")
            grew.append(slow / well - 1)
        print(f"{queue}: the median of {PAIRS} pairs grew by {statistics.median(grew):.2%}")
        assert statistics.median(grew) < 0.01, sorted(grew)
