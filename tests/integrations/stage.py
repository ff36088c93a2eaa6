"""A queue's real worker, the application beside it and a gateway that hears of its jobs; what became of each job.

    async with Stage("celery", command) as stage:
        job = await stage.send("succeed")
        assert (await stage.end(job))["state"] == "succeeded"
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.integrations.apps.work import LEASE
from tests.support.clients import Client, connect
from tests.support.environments import python_of
from tests.support.gateway import ROOT, Gateway
from tests.support.keys import API_KEY, token
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer

State = dict[str, Any]
Ends = dict[str, tuple[str, int, str | None]]  # by task: its end, the attempt, and the type of its error
USER = "it"
WITHIN = 60.0  # seconds; far more than anything takes, for busy machines
LEAVE = 5.0  # seconds for a worker that may be busy
ENDS = ("succeeded", "failed", "dead_lettered", "cancelled")
RUNNING = ("started", "progress", "stalled")
# What may follow what within one execution; "lost" is the gateway's opinion, and no end.
FOLLOWS = {
    "queued": (*RUNNING, *ENDS, "retrying", "lost"),
    "started": ("started", "progress", "stalled", "retrying", *ENDS),
    "progress": ("progress", "stalled", "retrying", *ENDS),
    "stalled": ("started", "progress", "lost", "retrying", *ENDS),
    "lost": ("started", "progress", "retrying", *ENDS),
    "retrying": (),
} | dict.fromkeys(ENDS, ())


class Worker:
    """A worker's process, and all that it starts."""

    def __init__(self, command: Sequence[str | Path], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def terminate(self) -> None:
        """As a supervisor would: the worker is asked to end, by its main process."""
        self.process.terminate()

    def kill(self) -> None:
        """As a machine that loses its power."""
        for _ in range(2):  # whoever was just being started, too
            for stat in Path("/proc").glob("[0-9]*/stat"):
                with suppress(OSError):
                    fields = stat.read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.process.pid and fields[0] != "Z":  # its session, whatever the group
                        os.kill(int(stat.parent.name), signal.SIGKILL)
        self.process.wait()

    async def leave(self) -> None:
        """What it has done is acknowledged to the queue; killed, it could have it done again by another worker."""
        self.terminate()
        with suppress(subprocess.TimeoutExpired):
            await self.ended(LEAVE)
        self.kill()

    async def ended(self, within: float = WITHIN) -> int:
        return await asyncio.to_thread(self.process.wait, within)


class Stage:
    """An async context manager. Workers speak to the gateway through `proxy`."""

    def __init__(self, queue: str, worker: Sequence[str], *, redis: bool = True, module: str | None = None) -> None:
        """`worker` is the command of one, run by the Python of the environment of `queue`."""
        self.queue, self._worker, self._module = queue, worker, module or queue
        self.redis = RedisServer() if redis else None
        self.gateway = Gateway()
        self.workers: list[Worker] = []
        self.sent: dict[str, str] = {}  # by task, the jobs that were sent at the beginning
        self.seen: dict[str, list[State]] = {}  # by job, in their order
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="ringcast-queue-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._python = await asyncio.to_thread(python_of, self.queue)
        if self.redis is not None:
            await asyncio.to_thread(self.redis.start)
        await asyncio.to_thread(self.gateway.start)
        self.proxy = Proxy(self.gateway.port)
        await self.proxy.accept()
        self._driver = await asyncio.create_subprocess_exec(
            self._python, "-m", "tests.integrations.apps.driver", self._module, cwd=ROOT,
            env=self._env(self.gateway.url), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None,
        )  # fmt: skip
        self._asking = asyncio.Lock()
        self.work()
        self._page = await connect("websocket", self.gateway.url, token(USER))
        await self._page.joined()
        self._watching = asyncio.create_task(self._watch(self._page))
        assert await self._answer() == {"ready": True}
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._watching.cancel()
        for worker in self.workers:
            worker.kill()
        if self._driver.returncode is None:
            self._driver.kill()
        await self._driver.wait()
        await self._page.close()
        await self.proxy.refuse()
        await asyncio.to_thread(self.gateway.close)
        if self.redis is not None:
            self.redis.close()
        self._folder.cleanup()
        if kind is None:
            for job in self.seen:
                self.check(job)  # what came behind its end, too

    def work(self) -> Worker:
        """Start one more worker."""
        command = [str(self._python), *self._worker]
        worker = Worker(command, self._env(self.proxy.url), self.folder / "worker.log")
        self.workers.append(worker)
        return worker

    @property
    def log(self) -> str:
        """All that the workers have written."""
        return (self.folder / "worker.log").read_text(errors="replace")

    async def send(self, task: str, *args: Any, **options: Any) -> str:
        """Have the application send a task; returns the job's id."""
        return str((await self._ask({"send": task, "args": args, "options": options}))["id"])

    async def begin(self, ends: Ends, args: dict[str, list[Any]]) -> None:
        """Send all these tasks, at once; `came_to` then tells of each."""
        self._ends = ends
        for task in ends:
            self.sent[task] = await self.send(task, *args.get(task, ()))

    async def came_to(self, task: str) -> State:
        """Wait for the end of one of them, which must be as expected."""
        job = self.sent[task]
        state = await self.end(job)
        found = (state["state"], state["attempt"], state.get("error", {}).get("type"))
        assert found == self._ends[task], f"{state} after {self.history(job)}"
        return state

    async def abort(self, job: str) -> None:
        await self._ask({"abort": job})

    async def runs(self, key: str) -> None:
        """Wait until a task has begun."""
        await self._mark(f"{key}.runs")

    async def done(self, key: str) -> None:
        """Wait until a task has done its work; its worker may have heard of that or not."""
        await self._mark(f"{key}.done")

    async def _mark(self, name: str) -> None:
        end = time.monotonic() + WITHIN
        while not (self.folder / name).exists():
            assert time.monotonic() < end, f"there is no {name}\n{self.log}"
            await asyncio.sleep(0.02)

    async def until(self, job: str, *states: str, attempt: int = 1, within: float = WITHIN) -> State:
        """Wait until a job is seen in one of these states, of this attempt or a later one."""
        def found() -> State | None:
            return next((each for each in self.seen.get(job, ())
                         if name_of(each) in states and each["attempt"] >= attempt), None)  # fmt: skip
        try:
            async with asyncio.timeout(within), self._news:
                await self._news.wait_for(lambda: found() is not None or self._watching.done())
        except TimeoutError:
            pass
        state = found()
        assert state is not None, f"{job} is not seen {states}: {self.history(job)}\n{self.log}"
        return state

    async def end(self, job: str, within: float = WITHIN) -> State:
        """Wait until the end of a job is seen; what was seen of it before must be in order."""
        state = await self.until(job, *ENDS, within=within)
        self.check(job)
        return state

    def history(self, job: str) -> list[tuple[str, int]]:
        return [(name_of(state), state["attempt"]) for state in self.seen.get(job, ())]

    def check(self, job: str) -> None:
        """One reported end at most, the last of all; attempts and executions that only go on."""
        states, history = self.seen.get(job, []), self.history(job)
        for before, state in itertools.pairwise(states):
            if (before["attempt"], before["run"]) < (state["attempt"], state["run"]) and before["run"]:
                assert name_of(before) not in ENDS, history
                continue  # another execution
            assert before["attempt"] == state["attempt"], history
            assert name_of(state) in FOLLOWS[name_of(before)], history
            if name_of(state) not in (*ENDS, "retrying"):  # which others may tell, who do not count
                assert before["seq"] <= state["seq"], history

    async def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        async with self._asking:
            assert self._driver.stdin is not None
            self._driver.stdin.write(json.dumps(what).encode() + b"\n")
            return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._driver.stdout is not None
        line = await asyncio.wait_for(self._driver.stdout.readline(), WITHIN)
        assert line, "the application has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _watch(self, page: Client) -> None:
        while True:
            message = await page.message(within=600)
            if not message.get("deleted"):
                self.seen.setdefault(message["key"], []).append(message["data"])
                async with self._news:
                    self._news.notify_all()

    def _env(self, url: str) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RINGCAST_", "COV_"))}
        env |= {"RINGCAST_URL": url, "RINGCAST_API_KEY": API_KEY, "WORK_FOLDER": str(self.folder),
                "WORK_REDIS": "" if self.redis is None else self.redis.url}  # fmt: skip
        return env


def name_of(state: State) -> str:
    return "lost" if state.get("reason") == "lost" else str(state["state"])


SOON = 2 * LEASE + 2  # seconds after which a job whose worker was killed is lost at the latest
