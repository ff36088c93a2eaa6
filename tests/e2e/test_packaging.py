"""The built wheel, installed into fresh environments: the base install, every declared Python, the image."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import httpx
import pytest

from tests.support.gateway import ROOT, Gateway, free_port
from tests.support.image import TREE, Container, health, missing, said, started
from tests.support.keys import API_KEY, HMAC_KEY, bearer, token
from tests.support.redis import RedisServer

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
NEEDED_BY_TESTS = ("pytest", "pytest-asyncio", "hypothesis")


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run to the end; returns stdout, or fails with everything that was written."""
    result = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def interpreter(version: str) -> Path | None:
    """A working Python of this version: the one that runs the tests, one on the PATH, or one of pyenv's."""
    if version == HERE:
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
    """The Python of a new environment with these installed, by the pip of the tests: it has none of its own."""
    run(python, "-m", "venv", "--without-pip", folder)
    return install(folder / "bin/python", *requirements)


def install(python: Path, *requirements: str) -> Path:
    run(*pip(python, "install", "--quiet", *requirements))
    return python


def names_in(python: Path) -> set[str]:
    """Of the distributions that are installed there."""
    listed = run(*pip(python, "list", "--format=freeze"))
    return {line.partition("==")[0].lower() for line in listed.splitlines()}


def pip(python: Path, *arguments: str) -> tuple[str | Path, ...]:
    return (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *arguments)


def test_the_base_install_is_the_sdk_and_the_subscriber_alone(wheel: Path, tmp_path: Path) -> None:
    python = installed(Path(sys.executable), tmp_path / "venv", str(wheel))
    run(python, "-c", "import publisher, publisher.testing, gateway.client", cwd=tmp_path)
    names = names_in(python)
    assert {"httpx", "websockets", "msgspec"} <= names
    assert not {"starlette", "uvicorn", "pydantic", "typer"} & names
    # The command is there, and says what is missing instead of showing a traceback.
    tried = subprocess.run([python.parent / "ringcast", "serve"], capture_output=True, text=True, cwd=tmp_path)
    assert tried.returncode == 2
    assert "ringcast[gateway]" in tried.stderr
    assert "Traceback" not in tried.stderr

    # A relay needs its extra, and not the server.
    install(python, f"{wheel}[postgres,kafka]")
    ringcast = python.parent / "ringcast"
    assert "FUNCTION ringcast_publish" in run(ringcast, "relay", "postgres", "--sql", cwd=tmp_path)
    for source in (("postgres", "--dsn", "nonsense"), ("kafka", "topic", "--session", "soon")):
        tried = subprocess.run([ringcast, "relay", *source], capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert tried.returncode in (1, 2), tried.stderr
        assert "Traceback" not in tried.stderr
    assert not {"starlette", "uvicorn"} & names_in(python)


@pytest.fixture(scope="module")
def own(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the gateway, of the version that runs the tests."""
    return installed(Path(sys.executable), tmp_path_factory.mktemp("own") / "venv", f"{wheel}[gateway]")


# The one that runs the tests in every run of them; the others cost a minute each, most of it for installing.
@pytest.fixture(
    scope="module", params=[pytest.param(v, marks=() if v == HERE else pytest.mark.chaos) for v in DECLARED]
)
def declared(request: pytest.FixtureRequest, wheel: Path, own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the gateway, of each version that the wheel says it is for."""
    version: str = request.param
    found = interpreter(version)
    if found is None:
        pytest.skip(f"Python {version} is not on this machine: `pyenv install {version}` makes this test run")
    if found == Path(sys.executable):
        return own
    return installed(found, tmp_path_factory.mktemp("declared") / "venv", f"{wheel}[gateway]")


@pytest.mark.chaos
def test_a_declared_python_runs_the_unit_tests(declared: Path, own: Path, tmp_path: Path) -> None:
    if declared == own:
        pytest.skip("this one runs them anyway")
    install(declared, *NEEDED_BY_TESTS)
    options: tuple[str, ...] = ("-q", "-p", "no:cacheprovider", "-W", "error")
    options += ("--ignore", "tests/unit/test_rule.py")  # a minute of random runs, whose faults are no interpreter's
    run(declared, "-m", "pytest", *options, "tests/unit", cwd=ROOT, env={"PATH": os.defpath, "HOME": str(tmp_path)})


def test_a_declared_python_runs_the_gateway(declared: Path, tmp_path: Path) -> None:
    with Gateway(python=declared) as gateway:
        ringcast = declared.parent / "ringcast"
        env = {"RINGCAST_URL": gateway.url, "PATH": os.defpath, "HOME": str(tmp_path)}
        run(ringcast, "publish", "user:ann", '{"n": 1}', cwd=tmp_path, env=env | {"RINGCAST_API_KEY": API_KEY})
        listener = env | {"RINGCAST_TOKEN": token("ann")}
        for transport in ("ws", "sse", "poll"):
            how = ("--transport", transport, "--since", "earliest", "--count", "1", "--json")
            heard = run(ringcast, "listen", "user:ann", *how, cwd=tmp_path, env=listener)
            assert '{"n": 1}' in heard or '{"n":1}' in heard
        assert gateway.stop() == 0, gateway.stderr
        assert not gateway.complaints(), gateway.stderr


def serves_as_an_image(tree: Path, folder: Path) -> None:
    """Start what the image starts, as its user, with nothing that it may write to, and end it as an engine would."""
    container = Container(folder, tree)
    told = container.run(["find", "/", "-maxdepth", "3", "-writable", "!", "-type", "l", "!", "-path", "/proc/*"])
    assert set(told.stdout.split()) == {"/dev/null", "/dev/urandom"}, "there is nothing that it could write to"
    port = free_port()
    with RedisServer() as redis:
        windows = {"RINGCAST_DRAIN_WAIT": "500ms", "RINGCAST_DRAIN": "1s"}
        env = {"RINGCAST_PORT": str(port), "RINGCAST_BROKER": redis.url, "RINGCAST_API_KEYS": API_KEY,
               "RINGCAST_JWT_HMAC_KEY": HMAC_KEY, **windows}  # fmt: skip
        assert container.run(health(), env).returncode != 0, "nothing runs yet"
        with (folder.parent / "log").open("w") as log:
            began = time.monotonic()
            process = subprocess.Popen(container.command(started(), env), stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            took = time.monotonic() - began
            # What a busy machine kept it waiting for a processor is no part of its start.
            statistics = Path(f"/proc/{process.pid}/schedstat")
            waited = int(statistics.read_text().split()[1]) / 1e9 if statistics.exists() else 0.0
            assert line.startswith(f"ringcast ready http://0.0.0.0:{port} "), (folder.parent / "log").read_text()
            assert took - waited < 3, f"ready after {took:.1f} s, of which {waited:.1f} s without a processor"
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert re.search(rf"^Uid:\t{said('USER')[0].partition(':')[0]}\t", status, re.M)
            assert container.run(health(), env).returncode == 0

            url, heard = f"http://127.0.0.1:{port}", []
            with httpx.Client(base_url=url, headers=bearer(token("ann")), trust_env=False, timeout=20) as client:
                welcome = threading.Event()

                def listen() -> None:
                    with client.stream("GET", "/v1/sse") as stream:
                        for line in stream.iter_lines():
                            heard.append(line)
                            welcome.set()

                listener = threading.Thread(target=listen)
                listener.start()
                assert welcome.wait(20)
                process.send_signal(signal.SIGTERM)
                assert process.wait(0.5 + 1 + 2 + 10) == 0, (folder.parent / "log").read_text()
                listener.join(20)
            assert "event: ringcast.goodbye" in heard
        finally:
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]


def test_the_installed_wheel_serves_as_nobody_on_a_tree_that_is_read_only(own: Path, tmp_path: Path) -> None:
    if (why := missing()) is not None:
        pytest.skip(f"No root of its own can be made: {why}")
    (tmp_path / "root").mkdir()
    serves_as_an_image(own.parents[1], tmp_path / "root")


@pytest.mark.chaos
def test_the_steps_of_the_dockerfile_make_what_serves(tmp_path: Path) -> None:
    """Its own, one by one; the paths that it names become folders of this test, and `python` the one of the tests."""
    if (why := missing()) is not None:
        pytest.skip(f"No root of its own can be made: {why}")
    source, tree, wheels = tmp_path / "src", tmp_path / "tree", tmp_path / "wheel"
    source.mkdir()
    for step in said("COPY", "build"):
        *names, target = step.split()
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / target)
            else:
                shutil.copy2(ROOT / name, source / target)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for step in said("RUN", "build"):
        step = step.replace(TREE, str(tree)).replace("/wheel", str(wheels))
        subprocess.run(["sh", "-euc", step], cwd=source, env=env, check=True, timeout=600)
    assert not (tree / "bin/pip").exists()
    (tmp_path / "root").mkdir()
    serves_as_an_image(tree, tmp_path / "root")
