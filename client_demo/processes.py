"""What the demo runs beside itself: the gateway's nodes, the store that several of them share, and a worker."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

STOP_WITHIN = 5.0  # seconds that a process is given to end in good order
STORE_WITHIN = 10.0  # seconds in which a store has to answer
AT_A_TIME = 8  # jobs; a worker whose queue is in files hears of a cancelled one only when it is not fully busy
AGAIN = 4.0  # seconds until a node that was killed is started again: long enough to see that it is gone


class NotStarted(Exception):
    """A process could not be started, or ended at once; one sentence that says which."""


class Node:
    """One node of the gateway: a process of its own, which its keeper starts again when it ended."""

    def __init__(self, name: str, port: int, environment: Mapping[str, str], flags: tuple[str, ...] = ()) -> None:
        self.name = name
        self.port = port
        self.url = ""
        self.up = False
        self._flags = flags
        self._environment = os.environ | environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Raises NotStarted."""
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", "serve", "--port", str(self.port), *self._flags,
            env=self._environment, stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us to pass on, after the page's backend has ended
        )  # fmt: skip
        assert process.stdout is not None
        words = (await process.stdout.readline()).decode().split()
        if words[:2] != ["ringcast", "ready"]:
            raise NotStarted("The gateway did not start; what it wrote above says why.")
        self.url = words[2].rstrip("/")
        self.up = True

    async def ended(self) -> int:
        """Wait until it has; returns its exit code."""
        assert self._process is not None
        code = await self._process.wait()
        self.up = False
        return code

    async def keep(self) -> int:
        """Start it again whenever it ended, as a supervisor does. Never returns; raises NotStarted."""
        while True:
            code = await self.ended()
            print(f"{self.name} ended ({code}); it is started again in {AGAIN:g} s.", flush=True)
            await asyncio.sleep(AGAIN)
            await self.start()
            print(f"{self.name} runs again, pid {self.pid}.", flush=True)

    def kill(self) -> None:
        """As the kernel would when memory is short: no goodbye."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        if self._process is not None:
            await _stop(self._process)


@asynccontextmanager
async def worker(environment: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Celery worker of `client_demo.worker`, which is ready. Raises NotStarted."""
    # A pipe of asyncio's would be part of the process: the worker's pool holds it too, and whoever waits for a worker
    # that was killed would wait for its pool.
    ready, says = os.pipe()
    words = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(words), os.fdopen(ready, "rb", 0)
    )
    with closing(pipe):
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "celery", "--quiet", "--app", "client_demo.worker", "worker",
                "--concurrency", str(AT_A_TIME), "--loglevel", "ERROR", "--without-gossip", "--without-mingle",
                env=os.environ | environment, stdout=says, cwd=Path(__file__).parents[1], start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(says)
        try:
            if not await words.readline():
                raise NotStarted("The worker did not start; what it wrote above says why.")
            yield process
        finally:
            with suppress(ProcessLookupError):  # with its pool; a good end would wait for jobs that nobody waits for
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@asynccontextmanager
async def store(broker: str, port: int) -> AsyncIterator[tuple[str, asyncio.subprocess.Process | None]]:
    """The store's URL for `--broker`, and its process: a real server with nothing in it. Raises NotStarted."""
    if broker == "memory":
        yield "memory://", None
        return
    with TemporaryDirectory(prefix="ringcast-demo-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        command = {
            "redis": ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "",
                      "--logfile", str(log)],
            "nats": ["nats-server", "--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir", folder,
                     "--log", str(log)],
        }[broker]  # fmt: skip
        binary = shutil.which(command[0]) or shutil.which(command[0], path=sysconfig.get_path("scripts"))
        if binary is None:
            raise NotStarted(f"{command[0]} is not installed; make demo BROKER={broker} sees to that.")
        process = await asyncio.create_subprocess_exec(
            binary, *command[1:], stdout=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        try:
            await _answers(process, port, b"PING\r\n", b"PONG", log)
            yield f"{broker}://127.0.0.1:{port}", process
        finally:
            await _stop(process)


async def _answers(process: asyncio.subprocess.Process, port: int, ask: bytes, answer: bytes, log: Path) -> None:
    """Wait until the server does. Both kinds take this question."""
    with suppress(TimeoutError):
        async with asyncio.timeout(STORE_WITHIN):
            while process.returncode is None:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                try:
                    writer.write(ask)
                    await reader.readuntil(answer)
                    return
                except (ConnectionError, asyncio.IncompleteReadError):
                    await asyncio.sleep(0.05)
                finally:
                    writer.close()
    raise NotStarted(f"The store did not start:\n{await asyncio.to_thread(log.read_text, errors='replace')}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_WITHIN)
    except TimeoutError:
        process.kill()
        await process.wait()
