"""Where the gateway's time goes: how much of a delivery, or of a client that comes back, is whose.

    python -m tests.benchmarks.parts [--rounds 3]

Microseconds of CPU, measured without a profiler; what the kernel has of them it says itself. Then py-spy, native stacks
included, says which share of the rest each part has: a sample counts for the innermost of our files on its stack. Those
within a system call are left out, for they are also of a process that has to wait.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks.comeback import Returning
from tests.benchmarks.fanout import round_of, titled
from tests.benchmarks.harness import CHANNEL, Ringcast
from tests.benchmarks.peers import Missing, installed, left_out, opened
from tests.benchmarks.single import names
from tests.benchmarks.single import round_of as single_round
from tests.benchmarks.table import Figures, Round, Table

RATE = 1000  # samples a second
CALLS = frozenset(("send", "write", "writev", "read", "recv", "accept4", "epoll_pwait", "epoll_ctl", "syscall", "close",
                   "getsockname", "getpeername", "setsockopt", "getpid"))  # fmt: skip
KERNEL, REST = "the kernel, for system calls", "the event loop and the HTTP server"
_OFFERING, _CONNECTIONS = "the hub: offering, catching up", "connections: taking, framing, writing"
_OPENING, _WHO = "the node: opening sessions, counting", "who it is: token, limits, place"
_REQUEST, _HEAD = "the request: lines cut apart, answers", "the request's head"
PARTS = {  # by the beginning of a file's path
    **dict.fromkeys(("hub", "session", "recent"), _OFFERING),
    **dict.fromkeys(("auth", "tokens", "hs256", "identity", "credentials", "keys", "limits", "admission"), _WHO),
    **dict.fromkeys(("ndjson", "http", "results", "intake", "native_publish"), _REQUEST),
    **dict.fromkeys(("protocols", "head"), _HEAD),
    "publish": "the publish: parsing and checking it",
    "message": "names, ids, cursors and JSON of messages",
    "brokers": "the store, and the chain of what it tells",
    "transports/asks": _OPENING,
    "transports": _CONNECTIONS,
    "": _OPENING,
}


class Sampler:
    """How a process spends its time: by the kernel's account within `clock`, by samples within `watch`.

    Needs py-spy, and to be allowed to trace.
    """

    def __init__(self, pid: int) -> None:
        """Raises Missing."""
        installed("py-spy")
        self._pid = pid
        self.user = self.kernel = 0  # ticks of the kernel's clock
        self.found: list[Counter[str]] = []

    @contextmanager
    def clock(self) -> Iterator[None]:
        before = self._times()
        yield
        after = self._times()
        self.user += after[0] - before[0]
        self.kernel += after[1] - before[1]

    def _times(self) -> tuple[int, int]:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]), int(fields[12])

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Raises Missing where the process cannot be traced."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "samples")
            spy = subprocess.Popen(
                [Path(sys.executable).with_name("py-spy"), "record", "--native", "--format", "raw", "--rate", str(RATE),
                 "--pid", str(self._pid), "--output", file],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            assert spy.stdout is not None
            said = ""
            while "Sampling" not in said:
                if not (said := spy.stdout.readline()):
                    raise Missing("py-spy may not trace here, or failed")
            try:
                yield
            finally:
                spy.send_signal(signal.SIGINT)
                spy.communicate()
            self.found.append(samples_of(file.read_text()))

    def table(self, title: str, unit: str, cost: list[float]) -> Table:
        """The parts of a cost, the largest first; what has less than a hundredth is put together."""
        whole, kernel = statistics.median(cost), self.kernel / (self.user + self.kernel)
        figures: Figures = {
            part: [whole * (1 - kernel) * each[part] / each.total() for each in self.found]
            for part in sorted(set().union(*self.found))
        }
        figures[KERNEL] = [whole * kernel] * len(self.found)
        small = [part for part, each in figures.items() if statistics.median(each) < whole / 100]
        parts = {part: each for part, each in figures.items() if part not in small}
        if small:
            parts["what has less than 1 % each"] = [
                sum(column) for column in zip(*map(figures.get, small), strict=True)
            ]
        ordered = dict(sorted(parts.items(), key=lambda entry: -statistics.median(entry[1])))
        return Table(f"Where it goes: {title}", unit, {"all of it": cost, **ordered})


def samples_of(report: str) -> Counter[str]:
    """How many samples each part has, of lines of frames, from the outermost to the innermost, and a count."""
    found: Counter[str] = Counter()
    for line in report.splitlines():
        stack, _, count = line.rpartition(" ")
        part = part_of(stack.split(";"))
        if part is not None:
            found[part] += int(count)
    return found


def part_of(frames: list[str]) -> str | None:
    function, _, place = frames[-1].partition(" (")
    if "libc" in place and function in CALLS:
        return None
    for frame in reversed(frames):
        _, ours, path = frame.partition(" (gateway/")
        if ours:
            return next(part for beginning, part in PARTS.items() if path.startswith(beginning))
    return REST


async def sampled(pid: int, rounds: int, work: Round, title: str, unit: str) -> Table:
    """Raises Missing."""
    sampler = Sampler(pid)
    await work()
    cost = []
    for _ in range(rounds):
        with sampler.clock():
            cost.append(await work())
    for _ in range(rounds):
        with sampler.watch():
            for _ in range(5):
                await work()
    return sampler.table(title, unit, cost)


async def fan_out(transport: str, rounds: int, subscribers: int = 1000) -> Table:
    async with AsyncExitStack() as stack:
        ((ours, load),) = opened(stack, [Ringcast()], transport, [CHANNEL] * subscribers)
        work = round_of(ours, load, 1, 100, subscribers)
        return await sampled(ours.pids[0], rounds, work, titled(transport, subscribers, 1), "µs of CPU a delivery")


async def single(rounds: int, users: int = 5000) -> Table:
    async with AsyncExitStack() as stack:
        ((ours, load),) = opened(stack, [Ringcast(max_connections=2 * users)], "websocket", names(users))
        work = single_round(ours, load, names(users), 10_000)
        return await sampled(ours.pids[0], rounds, work, "to one user at a time", "µs of CPU a message")


async def coming_back(rounds: int, clients: int = 10_000) -> Table:
    with ExitStack() as stack:
        returning = Returning(stack, clients)
        await returning.begin()
        sampler = Sampler(returning.server.pids[0])
        returning.watch = sampler.clock
        cost = [await returning.come() for _ in range(rounds)]
        returning.watch = sampler.watch
        for _ in range(rounds):
            await returning.come()
        return sampler.table("coming back", "µs of CPU a client", cost)


async def tables(rounds: int) -> list[Table]:
    try:
        found = [await fan_out("websocket", rounds), await fan_out("sse", rounds)]
        found += [await single(rounds), await coming_back(rounds)]
    except Missing as missing:
        left_out(str(missing))
        return []
    for table in found:
        table.show()
    return found


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rounds", type=int, default=3)
    await tables(ask.parse_args().rounds)


if __name__ == "__main__":
    asyncio.run(main())
