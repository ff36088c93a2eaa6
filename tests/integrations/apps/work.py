"""What the tasks of every queue do in these tests. Runs in the queues' own environments."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from publisher.jobs import JobReporter, current

LEASE = 0.8  # seconds
FOLDER = Path(os.environ.get("WORK_FOLDER", "."))  # where executions leave their marks
REDIS = os.environ.get("WORK_REDIS", "")


def reporter() -> JobReporter:
    """Of RINGCAST_URL and RINGCAST_API_KEY."""
    return JobReporter(lease=LEASE)


def executions(key: str) -> int:
    """How often this was asked for `key`, this time included; for a task that must know how often it was tried."""
    with (FOLDER / f"{key}.runs").open("ab") as file:
        file.write(b".")
    return (FOLDER / f"{key}.runs").stat().st_size


def succeed() -> str:
    return "done"


def ignore(what: object) -> None:
    pass


def progress() -> None:
    for _ in current().track(range(3)):
        time.sleep(0.3)


def flaky(key: str) -> None:
    """Fails twice."""
    if executions(key) < 3:
        raise ConnectionError("not yet")


def hopeless() -> None:
    raise ConnectionError("never")


def broken() -> None:
    raise ValueError("no such row")


def slow(key: str, seconds: float) -> None:
    """Takes its time, the first time; leaves a mark when it begins and one when it ends."""
    (FOLDER / f"{key}.pid").write_text(str(os.getpid()))
    first = executions(key) == 1
    end = time.monotonic() + seconds
    while first and time.monotonic() < end:
        time.sleep(0.02)
    (FOLDER / f"{key}.done").touch()


STEPS = 50


def measured(key: str) -> None:
    """Tells of its progress very often, and leaves behind how long it took."""
    began = time.perf_counter()
    for n in range(STEPS):
        time.sleep(0.01)
        current().progress(n, STEPS)
    took(key, began)


def took(key: str, began: float) -> None:
    (FOLDER / f"{key}.took").write_text(str(time.perf_counter() - began))


def suicide() -> None:
    """As the kernel's OOM killer would."""
    os.kill(os.getpid(), signal.SIGKILL)
