"""An environment for each queue that the publisher is integrated with: their pins clash, with each other and with ours.

    python -m tests.support.environments      makes all of them

Each is what `pip install ringcast[<queue>]` makes of an application's environment, with this checkout as the package,
and is made anew when what pyproject.toml asks for has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.gateway import ROOT

FOLDER = Path(sys.prefix, "integrations")
# Each extra, and what the tests use beside it: a client of their broker, and a loop that signals wake (docs/taskiq.md).
QUEUES: dict[str, list[str]] = {
    "celery": ["celery[redis]"], "dramatiq": ["dramatiq[redis]"], "taskiq": ["taskiq-redis>=1.2,<2", "uvloop>=0.21,<1"],
    "arq": [], "rq": [],
}  # fmt: skip


def python_of(queue: str) -> Path:
    """The Python of a queue's environment, which is made where it is missing or of other pins."""
    folder = FOLDER / queue
    python, stamp = folder / "bin/python", folder / "made"
    wanted = [*_project()["dependencies"], *_project()["optional-dependencies"][queue], *QUEUES[queue]]
    pins = hashlib.sha256(json.dumps([sys.version, wanted]).encode()).hexdigest()
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{queue}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != pins:
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
            install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
            install += ["install", "--quiet"]
            subprocess.run([*install, *wanted], check=True, timeout=600)
            (site,) = folder.glob("lib/python*/site-packages")
            (site / "ringcast.pth").write_text(f"{ROOT}\n")
            stamp.write_text(pins)
    return python


def _project() -> dict[str, dict[str, list[str]]]:
    project: dict[str, dict[str, list[str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


if __name__ == "__main__":
    for each in QUEUES:
        python_of(each)
