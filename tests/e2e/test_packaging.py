"""The built wheel, installed into fresh environments: the base install, and the gateway on every declared Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.gateway import ROOT, Gateway
from tests.support.keys import API_KEY, token

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
NEEDED_BY_TESTS = ("pytest", "pytest-asyncio", "hypothesis")


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run to the end; returns stdout, or fails with everything that was written."""
    result = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def interpreter(version: str) -> Path | None:
    """A working Python of this version: the one that runs the tests, one on the PATH, or one of pyenv's."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return Path(sys.executable)
    found = [Path(path)] if (path := shutil.which(f"python{version}")) else []
    found += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True)
    for each in found:  # a shim of pyenv's is on the PATH also for versions that are not active
        asked = "import ensurepip, sys; print(sys.version)"
        tried = subprocess.run([each, "-c", asked], capture_output=True, text=True)
        if tried.returncode == 0 and tried.stdout.startswith(version + "."):
            return each
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("ringcast-*.whl")
    return built


def installed(python: Path, folder: Path, *requirements: str) -> Path:
    """The Python of a new environment with these installed."""
    run(python, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return folder / "bin/python"


def test_the_base_install_is_the_sdk_and_the_subscriber_alone(wheel: Path, tmp_path: Path) -> None:
    python = installed(Path(sys.executable), tmp_path / "venv", str(wheel))
    run(python, "-c", "import publisher, publisher.testing, gateway.client", cwd=tmp_path)
    listed = run(python, "-m", "pip", "list", "--format=freeze")
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert {"httpx", "websockets", "msgspec"} <= names
    assert not {"starlette", "uvicorn", "pydantic", "typer"} & names
    # The command is there, and says what is missing instead of showing a traceback.
    tried = subprocess.run([python.parent / "ringcast", "serve"], capture_output=True, text=True, cwd=tmp_path)
    assert tried.returncode == 2
    assert "ringcast[gateway]" in tried.stderr
    assert "Traceback" not in tried.stderr


@pytest.mark.parametrize("version", DECLARED)
def test_a_declared_python_runs_the_unit_tests_and_the_gateway(version: str, wheel: Path, tmp_path: Path) -> None:
    found = interpreter(version)
    if found is None:
        pytest.skip(f"Python {version} is not on this machine: `pyenv install {version}` makes this test run")
    python = installed(found, tmp_path / "venv", f"{wheel}[gateway]", *NEEDED_BY_TESTS)
    if found != Path(sys.executable):  # which runs them anyway
        options: tuple[str, ...] = ("-q", "-p", "no:cacheprovider", "-W", "error")
        options += ("--ignore", "tests/unit/test_rule.py")  # a minute of random runs, whose faults are no interpreter's
        run(python, "-m", "pytest", *options, "tests/unit", cwd=ROOT, env={"PATH": os.defpath, "HOME": str(tmp_path)})

    with Gateway(python=python) as gateway:
        ringcast = python.parent / "ringcast"
        env = {"RINGCAST_URL": gateway.url, "PATH": os.defpath, "HOME": str(tmp_path)}
        run(ringcast, "publish", "user:ann", '{"n": 1}', cwd=tmp_path, env=env | {"RINGCAST_API_KEY": API_KEY})
        listener = env | {"RINGCAST_TOKEN": token("ann")}
        for transport in ("ws", "sse", "poll"):
            how = ("--transport", transport, "--since", "earliest", "--count", "1", "--json")
            heard = run(ringcast, "listen", "user:ann", *how, cwd=tmp_path, env=listener)
            assert '{"n": 1}' in heard or '{"n":1}' in heard
        assert gateway.stop() == 0, gateway.stderr
        assert not gateway.complaints(), gateway.stderr
