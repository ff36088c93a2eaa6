"""A real `ringcast serve` process, for tests.

    with Gateway(heartbeat="200ms", toml="[channels.room]\\nkeyed = true") as gateway:
        gateway.publish("room:1", {"n": 1})

Keyword arguments are settings and travel as RINGCAST_* variables. Nothing of the surrounding RINGCAST_* environment
gets in. The port lies below the range that outgoing connections are given theirs from, so that a gateway that was
killed can come back on it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.keys import API_KEY, HMAC_KEY, bearer

_FOR_TESTS = {
    "api_keys": API_KEY, "jwt_hmac_key": HMAC_KEY, "check_interval": "2s", "drain_wait": 0, "drain": "1s",
    "max_lag": "60s",  # busy machines
}  # fmt: skip
_PLAIN: dict[str, Any] = {"timeout": 30, "trust_env": False, "verify": False}  # loopback: no proxy, no certificates
ROOT = Path(__file__).parents[2]
OWN_PARTITIONS = 2  # that a gateway on memory:// follows for itself: those of the revocations and of the jobs
READY_WITHIN = 30.0  # seconds; far more than it takes, for busy machines


class GatewayFailed(Exception):
    """The process ended, or was not ready in time; holds what it wrote to stderr."""


class Gateway:
    """One gateway process; `start` waits for its ready line. A context manager, also of `async with`."""

    def __init__(
        self, *, port: int | None = None, toml: str | None = None, flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None, python: Path | None = None, module: str = "gateway.cli", **settings: Any,
    ) -> None:  # fmt: skip
        """`python` is that of an environment with an installed gateway; else this checkout runs in the tests' own.

        `module` is what runs in place of the command itself, to spoil something of the node.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="ringcast-test-")
        self.port = free_port() if port is None else port
        self.flags = list(flags)
        self.module = module
        self.python = str(python or sys.executable)
        self.cwd = self._folder.name if python else ROOT
        if toml is not None:
            config = Path(self._folder.name, "ringcast.toml")
            config.write_text(toml)
            self.flags += ["--config", str(config)]
        self.env = {name: value for name, value in os.environ.items() if not name.upper().startswith("RINGCAST_")}
        self.env |= {"PYTHONFAULTHANDLER": "1", "NO_COLOR": "1"}
        for name, value in (_FOR_TESTS | settings).items():
            if value is not None:
                self.env[f"RINGCAST_{name.upper()}"] = _written(value)
        self.env |= env or {}
        self.url = ""
        self.ready_line = ""
        self._process: subprocess.Popen[str] | None = None
        self._stderr = Path(self._folder.name, "stderr")

    @property
    def process(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise GatewayFailed("the gateway was not started")
        return self._process

    @property
    def stderr(self) -> str:
        """All that its runs have logged so far."""
        return self._stderr.read_text(errors="backslashreplace") if self._stderr.exists() else ""

    @property
    def resident(self) -> int:
        """The bytes of memory that its process has."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))

    @property
    def ws_url(self) -> str:
        return "ws" + self.url.removeprefix("http")

    def start(self) -> Self:
        """Start the process and wait until it is ready; raises GatewayFailed with its stderr when it is not."""
        command = [self.python, "-m", self.module, "serve", "--port", str(self.port), *self.flags]
        with self._stderr.open("a") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, env=self.env,
                cwd=self.cwd,
            )  # fmt: skip
        self.ready_line = self._first_line(READY_WITHIN)
        word, ready, self.url, *_ = [*self.ready_line.split(), "", "", ""]
        if (word, ready) != ("ringcast", "ready"):
            self.kill()
            raise GatewayFailed(f"instead of its ready line it wrote {self.ready_line!r}\n{self.stderr}")
        self.url = self.url.rstrip("/")
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def _first_line(self, within: float) -> str:
        stdout = self.process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], within)
        if not ready:
            self.kill()
            raise GatewayFailed(f"not ready within {within:g} s\n{self.stderr}")
        return stdout.readline().strip()

    def kill(self) -> None:
        """End it as the kernel's OOM killer would."""
        if self._process is not None:
            self._process.kill()
            self.ended(10)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, within: float = 15.0) -> int:
        """Ask it to end (SIGTERM) and wait until it has; returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.ended(within)

    def ended(self, within: float = 15.0) -> int:
        """Wait until it has ended; returns its exit code."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise GatewayFailed(f"still running {within:g} s after it was told to end\n{self.stderr}") from None
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def restart(self, *, kill: bool = False) -> None:
        """End it, by SIGKILL or in good order, and start it again on the same port."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def api(self, credential: str = API_KEY) -> httpx.AsyncClient:
        """An asynchronous client of its HTTP interface; close it after use."""
        return httpx.AsyncClient(base_url=self.url, headers=bearer(credential), **_PLAIN)

    def http(self, credential: str = API_KEY) -> httpx.Client:
        """A blocking client of its HTTP interface; close it after use."""
        return httpx.Client(base_url=self.url, headers=bearer(credential), **_PLAIN)

    def publish(self, channel: str, data: Any, event: str = "test", **fields: Any) -> dict[str, Any]:
        """Publish one message, blocking; returns its receipt."""
        with self.http() as http:
            response = http.post("/v1/publish", json={"channel": channel, "event": event, "data": data, **fields})
        response.raise_for_status()
        receipt: dict[str, Any] = response.json()["results"][0]
        return receipt

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name which carry these labels; 0 when there is none."""
        with self.http() as http:
            text = http.get("/metrics").raise_for_status().text
        samples = itertools.chain.from_iterable(family.samples for family in text_string_to_metric_families(text))
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    async def until(self, condition: Callable[[], bool], within: float = 10.0, said: str = "") -> None:
        """Wait until `condition` holds, asked every 20 ms in a thread of its own; fails when it never does."""
        end = time.monotonic() + within
        while not await asyncio.to_thread(condition):
            if time.monotonic() > end:
                raise AssertionError(f"not within {within:g} s: {said or condition}")
            await asyncio.sleep(0.02)

    def complaints(self) -> list[str]:
        """What a healthy gateway never logs."""
        signs = ("Traceback", "never retrieved", "never awaited", "was destroyed but", "Warning:")
        return [line for line in self.stderr.splitlines() if any(sign in line for sign in signs)]

    def close(self) -> None:
        """End it without ceremony and remove its files."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.close)


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ports() -> Iterator[int]:
    """Each worker of pytest-xdist goes round its own 1,000 ports, from a place of its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20000 + worker % 10 * 1000
    begin = random.randrange(1000)
    return (first + (begin + n) % 1000 for n in itertools.count())


_free = _ports()


def free_port() -> int:
    """A port of the loopback address that nobody listens on now and no outgoing connection is given."""
    for port in itertools.islice(_free, 1000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise GatewayFailed("no free port between 20000 and 29999")
