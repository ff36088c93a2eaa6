"""The browser client's own unit tests, run by the Node.js that Playwright brings along: a machine need have none."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright", reason="Playwright is not installed, and its Node.js with it")

NODE = Path(playwright.__file__).with_name("driver") / "node"
TESTS = sorted(Path(__file__).with_name("js").glob("*.test.mjs"))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_the_javascript_passes_its_own_tests(file: Path) -> None:
    command = [str(NODE), "--no-warnings", "--test", "--test-reporter=tap", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^# pass [1-9]\d*$", run.stdout, re.MULTILINE), run.stdout
