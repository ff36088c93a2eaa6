"""Autobahn's fuzzing client against the gateway's WebSocket class. It needs Python 2.7, which pyenv may hold."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.echo import echo_server

ROOT = Path(__file__).parents[2]
# Not 9.*, which sends messages of 16 MiB where at most 1 MiB is taken, and not 12.* and 13.*, compression.
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]


def python2() -> str | None:
    """A Python 2.7, where this machine has one."""
    found = sorted(Path.home().glob(".pyenv/versions/2.7*/bin/python2.7"))
    return str(found[-1]) if found else shutil.which("python2.7")


@pytest.fixture(scope="module")
def wstest() -> Path:
    """The fuzzing client, installed once beside the other test tools."""
    home, python = ROOT / ".venv" / "autobahn", python2()
    if python is None:
        pytest.skip("Autobahn's test suite needs Python 2.7, and there is none here")
    if not (home / "bin" / "wstest").exists():
        for command in (
            [python, "-m", "pip", "install", "--quiet", "--user", "virtualenv<20.22"],
            [python, "-m", "virtualenv", "--quiet", str(home)],
            [str(home / "bin" / "pip"), "install", "--quiet", "autobahntestsuite"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                pytest.skip(f"Autobahn's test suite cannot be installed here: {done.stderr[-300:]}")
    return home / "bin" / "wstest"


def fuzz(wstest: Path, url: str, folder: Path) -> dict[str, dict[str, str]]:
    """What the fuzzing client says of each case; blocks until it has run them all."""
    spec = {
        "outdir": str(folder), "servers": [{"agent": "ringcast", "url": url}], "cases": CASES, "exclude-cases": [],
        "exclude-agent-cases": {},
    }  # fmt: skip
    Path(folder, "spec.json").write_text(json.dumps(spec))
    command = [str(wstest), "-m", "fuzzingclient", "-s", str(folder / "spec.json")]
    subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=600)
    found: dict[str, dict[str, str]] = json.loads(Path(folder, "index.json").read_text())["ringcast"]
    return found


@pytest.mark.chaos
async def test_the_fuzzing_client_finds_nothing(wstest: Path, tmp_path: Path) -> None:
    async with echo_server() as url:
        results = await asyncio.to_thread(fuzz, wstest, url, tmp_path)
    assert len(results) > 200
    wrong = {
        case: (found["behavior"], found["behaviorClose"]) for case, found in results.items()
        if found["behavior"] not in ("OK", "NON-STRICT", "INFORMATIONAL")
        or found["behaviorClose"] not in ("OK", "INFORMATIONAL")
    }  # fmt: skip
    assert not wrong
