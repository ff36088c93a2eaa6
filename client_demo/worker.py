"""The demo's worker: `celery -A client_demo.worker worker`. What its jobs do is make-believe; how they go is real."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.exceptions import Ignore, SoftTimeLimitExceeded
from celery.platforms import SecurityWarning
from celery.signals import worker_ready

from client_demo.queue import celery_at
from publisher.celery import report
from publisher.jobs import Job, JobReporter, current

PACE = float(os.environ.get("DEMO_PACE", "1"))  # how long a second of this work takes

warnings.simplefilter("ignore", SecurityWarning)  # of being root, which containers are; only JSON is read here
app = celery_at(os.environ["DEMO_QUEUE"])
report(JobReporter(lease=10), results=True)  # RINGCAST_URL and RINGCAST_API_KEY say to whom


class WarehouseAway(Exception):
    """Passes by itself: worth another attempt."""


class NoFigures(Exception):
    """Does not pass, however often it is tried."""


@contextmanager
def revocable() -> Iterator[Job]:
    """The job of the task that this runs in, which SIGUSR1 interrupts: a soft time limit, or somebody revoked it."""
    try:
        yield current()
    except SoftTimeLimitExceeded:
        raise Ignore from None


@app.task(  # type: ignore[untyped-decorator]  # Celery has no types
    name="report", throws=(NoFigures, WarehouseAway),
    autoretry_for=(WarehouseAway,), max_retries=2, default_retry_delay=1.5,
)  # fmt: skip
def make_report(rows: int = 4000, away: int = 0, figures: bool = True) -> dict[str, Any]:
    """A report, whose warehouse is away for that many attempts; where there are no figures there is none."""
    with revocable() as job:
        for done in range(0, rows + 1, 40):
            job.progress(done, rows, note=f"Row {done:,} of {rows:,}")
            time.sleep(0.06 * PACE)
            if done >= rows // 4 and job.attempt <= away:
                raise WarehouseAway("The warehouse does not answer.")
            if done >= rows // 2 and not figures:
                raise NoFigures("There are no figures for this quarter.")
    return {"text": f"{rows:,} rows, ready to download", "rows": rows}


@app.task(name="image")  # type: ignore[untyped-decorator]
def process_image(name: str, megapixels: int) -> dict[str, Any]:
    """One image, which takes the longer the larger it is."""
    with revocable() as job:
        for done in range(megapixels + 1):
            job.progress(done, megapixels, note=name)
            time.sleep(0.2 * PACE)
    return {"text": name, "megapixels": megapixels}


@worker_ready.connect  # type: ignore[untyped-decorator]
def _ready(**_: object) -> None:
    """One line on stdout, for whoever started this; Celery's own words go to stderr."""
    print("worker ready", file=sys.__stdout__, flush=True)
