"""The browser client's own unit tests, run by node where there is one (Debian's `nodejs`, 20 or newer)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = sorted(Path(__file__).with_name("js").glob("*.test.mjs"))
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed; the tests in a real browser run all the same")
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_the_javascript_passes_its_own_tests(file: Path) -> None:
    command = [str(NODE), "--no-warnings", "--test", "--test-reporter=tap", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^# pass [1-9]\d*$", run.stdout, re.MULTILINE), run.stdout
