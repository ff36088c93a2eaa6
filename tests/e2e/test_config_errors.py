"""What `ringcast` says when it cannot do its work at all: a sentence on stderr and exit code 2, never a traceback.

Which setting is refused for what is in `tests/unit/test_settings.py`; here are the process and its surroundings.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import environment, ringcast
from tests.support.gateway import ROOT


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("config", "check"), ("--help",)])
def test_an_output_that_cannot_be_written_is_told_in_one_sentence(command: tuple[str, ...], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *command],
            cwd=ROOT, env=environment({"PYTHONUNBUFFERED": unbuffered}),
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("command", [("serve",), ("config", "check"), ("token", "--user", "ann")])
def test_all_that_is_wrong_is_told_at_once_and_no_secret_with_it(command: tuple[str, ...], tmp_path: Path) -> None:
    config = tmp_path / "ringcast.toml"
    config.write_text('drain = "soon"\nprot = 1\n')
    done = ringcast(
        *command, "--config", str(config), RINGCAST_BROKER="amqp://:hunter2@cache",
        RINGCAST_JWT_HMAC_KEY="hunter2", RINGCAST_API_KEYS="hunter2 with spaces",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    told = done.stderr.splitlines()
    assert len(told) == 5
    for name in ("BROKER", "JWT_HMAC_KEY", "API_KEYS", f"drain in {config}", f"prot in {config}"):
        assert any(name in line for line in told), name
    assert all(line.endswith(".") for line in told)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("arguments", [("serve", "--prot", "1"), ("serve", "extra"), ("nothing",), ("config", "chek")])
def test_wrong_usage_is_exit_code_2_too(arguments: tuple[str, ...]) -> None:
    done = ringcast(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--help" in done.stderr
