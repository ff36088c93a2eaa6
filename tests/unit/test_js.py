"""The browser client's own unit tests, run by node where there is one; Debian 12's `nodejs` is too old for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = sorted(Path(__file__).with_name("js").glob("*.test.mjs"))
NEEDED = (20, 19)  # the first of 20 that takes ES modules for what they are, and fakes timers as the tests want them


def _version() -> tuple[int, ...]:
    """That of the node on the PATH; none where there is none."""
    path = shutil.which("node")
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    return tuple(int(number) for number in re.findall(r"\d+", said))


@pytest.mark.skipif(_version() < NEEDED, reason="there is no node 20.19 or newer; a real browser is tested anyway")
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_the_javascript_passes_its_own_tests(file: Path) -> None:
    command = ["node", "--no-warnings", "--test", "--test-reporter=tap", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^# pass [1-9]\d*$", run.stdout, re.MULTILINE), run.stdout
