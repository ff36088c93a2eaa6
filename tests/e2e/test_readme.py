"""The README is true: its commands are typed as they stand, into a clean copy of the project, in the order of the page.

    bash demo         runs until the end, in a terminal of its own; what it prints to paste is pasted
    bash listening    runs until the end, in a second one; `bash serving` and `bash joining` likewise
    bash cluster      runs until the end; what it prints to paste is pasted before `bash nodes`
    bash, python      run to the end, in a third one
    js                runs in a page of Chromium
    bash kubernetes   is for a cluster: tests/deploy holds what it names
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from gateway.config import load
from tests.support.gateway import ROOT, free_port

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```([^\n]*)\n(.*?)^```$", README, re.M | re.S)
READY_WITHIN = 300.0  # seconds, installing included


def blocks(info: str) -> list[str]:
    return [text for found, text in BLOCKS if found == info]


class Terminal:
    """A running command and what it has printed so far."""

    def __init__(self, command: str, cwd: Path, env: dict[str, str]) -> None:
        self.printed = ""
        self.process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def until(self, pattern: str, within: float) -> re.Match[str]:
        """Read until the pattern was printed; fails with all that was printed when it is not in time."""
        assert self.process.stdout is not None
        end = time.monotonic() + within
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not (found := re.search(pattern, self.printed, re.M)):
                assert selector.select(max(0.0, end - time.monotonic())), f"no {pattern!r} in:\n{self.printed}"
                chunk = os.read(self.process.stdout.fileno(), 65536)
                assert chunk, f"it ended without {pattern!r}:\n{self.printed}"
                self.printed += chunk.decode()
        return found

    def interrupt(self, within: float = 20.0) -> int:
        """Ctrl-C."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(within)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clean clone holds, the changes that are not committed yet included."""
    folder = tmp_path_factory.mktemp("clone") / "ringcast"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in listed:
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def env() -> dict[str, str]:
    """A new user's, whose `python3` is the Python of the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RINGCAST_", "PYTEST_"))}
    return kept | {"PYTHON": getattr(sys, "_base_executable", sys.executable), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def demo(clone: Path, env: dict[str, str]) -> Iterator[dict[str, str]]:
    """`make demo`, running; the environment of a terminal that its line was pasted into."""
    (command,) = blocks("bash demo")
    terminal = Terminal(command, clone, env)
    try:
        pasted = terminal.until(r"export (RINGCAST_URL=\S+) (RINGCAST_API_KEY=\S+)", READY_WITHIN)
        page = terminal.until(r"http://127\.0\.0\.1:\d+", 5)
        yield env | dict(setting.split("=", 1) for setting in pasted.groups()) | {"PAGE": page[0]}
    finally:
        terminal.interrupt()


def run(command: str, cwd: Path, env: dict[str, str]) -> str:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_walk_through_works_as_it_is_written(clone: Path, demo: dict[str, str]) -> None:
    (listen,) = blocks("bash listening")
    publish, poll, away, resume = blocks("bash")
    second = Terminal(listen, clone, demo)
    try:
        second.until(r"\nid: \S+\n", 20)  # it has its first checkpoint: from here on nothing is lost
        (receipt,) = json.loads(run(publish, clone, demo))["results"]
        shown = second.until(r"event: note\ndata: (\{.*\})\n", 20)
    finally:
        second.interrupt()
    message = json.loads(shown[1])
    assert message["offset"] == receipt["offset"]
    assert message["data"] == {"title": "Hello", "text": "from curl"}

    polled = json.loads(run(poll, clone, demo))
    assert polled["messages"] == [message]

    printed = run(away + resume, clone, demo)  # in one terminal, whose variables last
    answer, end = json.JSONDecoder().raw_decode(printed, printed.index("{"))
    assert [each["data"]["text"] for each in answer["messages"]] == ["1 of 3", "2 of 3", "3 of 3"]
    assert answer["resets"] == []
    assert re.findall(r"\d of 3", printed[end:printed.find("cursor", end)]) == ["1 of 3", "2 of 3", "3 of 3"]


def test_the_python_example_publishes(clone: Path, demo: dict[str, str]) -> None:
    (example,) = blocks("python")
    printed = subprocess.run(
        [clone / ".venv/bin/python", "-c", example], env=demo, capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert int(printed) > 10**15


APPLICATION = """
    window.shown = [];
    const show = (event, data) => shown.push([event, data]), reload = (channel) => shown.push(["reset", channel]);
    const fetchToken = async () => {
      const headers = { "Content-Type": "application/json" };
      return (await (await fetch("/demo/session", { method: "POST", body: "{}", headers })).json()).token;
    };
"""  # what the example takes for granted


def test_the_browser_example_receives(clone: Path, demo: dict[str, str]) -> None:
    (example,) = blocks("js")
    imports, _, rest = example.replace("http://127.0.0.1:8000", demo["RINGCAST_URL"]).partition("\n")
    state = 'ringcast.on("state", ({ state }) => { window.state = state; });'
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(demo["PAGE"] + "/style.css")  # of an origin that the gateway allows, and without a script of its own
        page.add_script_tag(content=imports + APPLICATION + rest + state, type="module")
        page.wait_for_function("window.state === 'open'")
        run(f"{clone}/.venv/bin/ringcast publish topic:news '{{\"title\": \"Hello\"}}' --event note", clone, demo)
        page.wait_for_function("window.shown.length")
        assert page.evaluate("window.shown") == [["note", {"title": "Hello"}]]
        browser.close()


def test_serving_others_takes_no_more_than_it_says(clone: Path, demo: dict[str, str]) -> None:
    (command,) = blocks("bash serving")
    alone = {name: value for name, value in demo.items() if not name.startswith("RINGCAST_")}
    terminal = Terminal(command.replace("9000", str(free_port())), clone, alone)
    try:
        terminal.until(r"^ringcast ready http://0\.0\.0\.0:\d+ node=\S+ broker=memory$", 30)
    finally:
        assert terminal.interrupt() == 0, terminal.printed


def test_several_nodes_go_on_when_one_is_killed(clone: Path, env: dict[str, str], demo: dict[str, str]) -> None:
    """Beside the first demo, whose .venv it uses."""
    (cluster,), (look,), (join,) = blocks("bash cluster"), blocks("bash nodes"), blocks("bash joining")
    terminal = Terminal(cluster, clone, env)
    try:
        pasted = terminal.until(r"export (RINGCAST_URL=\S+) (RINGCAST_API_KEY=\S+)", READY_WITHIN)
        pids = dict(re.findall(r"(node-\d) +http://\S+ +pid (\d+)", terminal.printed))
        assert list(pids) == ["node-1", "node-2", "node-3"]
        here = env | dict(setting.split("=", 1) for setting in pasted.groups())

        def nodes() -> dict[str, str]:
            told, end = json.JSONDecoder().raw_decode(printed := run(look, clone, here))
            assert re.search(r'^home = "\S+"$', printed[end:], re.M), printed
            return {node["node"]: node["state"] for node in told["nodes"]}

        until(lambda: nodes() == dict.fromkeys(pids, "active"), 20)
        store = re.search(r"redis://127\.0\.0\.1:\d+", terminal.printed)
        assert store is not None
        one_more = join.replace("redis://127.0.0.1:6379", store[0]).replace("9001", str(free_port()))
        joined = Terminal(one_more, clone, env)
        try:
            joined.until(r"^ringcast ready http://127\.0\.0\.1:\d+ node=gateway-1 broker=redis$", 30)
            until(lambda: nodes() == dict.fromkeys([*pids, "gateway-1"], "active"), 20)
        finally:
            joined.interrupt()

        command = ".venv/bin/ringcast listen topic:news --since earliest --count 3"
        listening = Terminal(command, clone, here)
        try:
            on = listening.until(r"connected over ws to (node-\d)", 20)[1]
            run(".venv/bin/ringcast publish topic:news 1 && .venv/bin/ringcast publish topic:news 2", clone, here)
            listening.until(r"message  2$", 20)
            os.kill(int(pids[on]), signal.SIGKILL)
            run(".venv/bin/ringcast publish topic:news 3", clone, here)
            listening.until(r"message  3$", 20)
            assert [line[-1] for line in listening.printed.splitlines() if "  message  " in line] == ["1", "2", "3"]
        finally:
            listening.interrupt()
        terminal.until(rf"^{on} runs again", 30)
    finally:
        terminal.interrupt()


def until(condition: Callable[[], bool], within: float) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.1)


def test_the_example_of_a_configuration_is_one(tmp_path: Path) -> None:
    (example,) = blocks("toml")
    assert tomllib.loads(example)
    config = tmp_path / "ringcast.toml"
    config.write_text(example)
    assert load(config).policy("room:1").keyed


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_example_is_run() -> None:
    assert {info for info, _ in BLOCKS} == {
        "bash demo", "bash listening", "bash serving", "bash", "python", "toml", "text", "js", "bash cluster",
        "bash nodes", "bash joining", "bash kubernetes",
    }  # fmt: skip
    assert len(blocks("bash")) == 4
