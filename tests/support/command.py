"""The command `ringcast` as a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
WITHIN = 30.0  # seconds; far more than anything takes, for busy machines


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Ours without any RINGCAST_*, with `env`, and plain output of one width."""
    bare = {name: value for name, value in os.environ.items() if not name.upper().startswith("RINGCAST_")}
    return bare | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200", **env}


def ringcast(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run `ringcast ARGUMENTS` to its end; keywords are the environment. No traceback may ever be seen."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments], input=stdin, capture_output=True, text=True, check=False,
        cwd=ROOT, env=environment(env), timeout=WITHIN,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


class Running:
    """`ringcast ARGUMENTS`, running; its lines can be waited for."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=ROOT, env=environment(env),
        )  # fmt: skip
        self._unread = {"out": b"", "err": b""}
        self.said = {"out": "", "err": ""}  # all that was read so far

    def line(self, stream: str = "out") -> str:
        """The next line of stdout, or of stderr ("err"); the other one is kept meanwhile."""
        end = time.monotonic() + WITHIN
        while b"\n" not in self._unread[stream]:
            self._read(end, stream)
        line, _, self._unread[stream] = self._unread[stream].partition(b"\n")
        return line.decode()

    def until(self, text: str, stream: str = "err") -> str:
        """The next line that holds `text`, others before it passed over."""
        while text not in (line := self.line(stream)):
            pass
        return line

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.line())
        return found

    def _read(self, end: float, wanted: str) -> None:
        pipes = {"out": self._process.stdout, "err": self._process.stderr}
        ready, _, _ = select.select([pipe for pipe in pipes.values() if pipe], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"nothing more on std{wanted} within {WITHIN:g} s; so far: {self.said}"
        for name, pipe in pipes.items():
            if pipe in ready:
                data = os.read(pipe.fileno(), 1 << 16)
                assert data or name != wanted, f"std{name} has ended; so far: {self.said}"
                self._unread[name] += data
                self.said[name] += data.decode()

    def close_stdout(self) -> None:
        """Read it no more, as `head` does after its last line."""
        if self._process.stdout is not None:
            self._process.stdout.close()
            self._process.stdout = None

    def end(self, number: signal.Signals | None = None) -> int:
        """Wait until it has ended, after a signal where one is given; returns its exit code."""
        if number is not None:
            self._process.send_signal(number)
        out, err = self._process.communicate(timeout=WITHIN)
        self.said["out"] += (out or b"").decode()
        self.said["err"] += err.decode()
        assert "Traceback" not in self.said["err"], self.said["err"]
        return self._process.returncode

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """As the kernel's OOM killer would."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
