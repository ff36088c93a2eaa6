"""To one user at a time: thousands are connected, each message is for one of them, published in batches of lines.

    python -m tests.benchmarks.single [--users 5000] [--rounds 5] [--messages 10000]

Microseconds of the server's CPU per message, its publish included. What parsing the publish costs is measured alone, in
this process, and added to the floor, which is given nothing to parse.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack

from gateway.ndjson import Lines
from gateway.publish import body_limit, parse
from gateway.settings import Settings
from tests.benchmarks.harness import SIZE, Load, Numbers, Server, cpu_of, two
from tests.benchmarks.peers import NAMES, of, opened
from tests.benchmarks.table import Figures, Round, Table, alternate, ratio

BATCH = 100  # messages that are published together
OURS, FLOOR, PARSING, ALLOWED = "ringcast", "floor, a send() a message", "parsing the publish", "floor and parsing"


def names(users: int) -> list[str]:
    return [f"user:user-{number}" for number in range(users)]


def round_of(server: Server, load: Load, channels: list[str], messages: int) -> Round:
    numbers, pids, at = Numbers(), server.pids, 0

    async def work() -> float:
        nonlocal at
        load.expect(0)
        before = cpu_of(*pids)
        for done in range(BATCH, messages + 1, BATCH):
            server.publish(numbers.messages(channels[(at + n) % len(channels)] for n in range(BATCH)))
            at += BATCH
            load.total(done)
        return (cpu_of(*pids) - before) / messages * 1e6

    return work


def parsing(messages: int) -> float:
    """Microseconds to cut lines apart, and to make a checked draft of each."""
    settings = Settings(broker="memory://")
    body = "".join(
        f'{{"channel":"{channel}","event":"bench","data":{data}}}\n'
        for channel, data in Numbers().messages(names(BATCH))
    )  # fmt: skip
    chunk = body.encode()
    began = time.process_time()
    for _ in range(messages // BATCH):
        for _, line in _lines(chunk, settings):
            assert line is not None
            parse(line, settings, "bench")
    return (time.process_time() - began) / messages * 1e6


def _lines(chunk: bytes, settings: Settings) -> Iterator[tuple[int, bytes | None]]:
    yield from Lines(body_limit(settings)).feed(chunk)


async def measure(users: int, rounds: int, messages: int, servers: Iterable[Server] | None = None) -> Figures:
    given = two("websocket", max_connections=2 * users) if servers is None else servers
    channels = names(users)
    async with AsyncExitStack() as stack:
        loads = opened(stack, given, "websocket", channels)
        ways = {server.name: round_of(server, load, channels, messages) for server, load in loads}

        async def parsed() -> float:
            return parsing(messages)

        await alternate(1, ways)  # to warm up
        found = await alternate(rounds, ways | {PARSING: parsed})
    found[ALLOWED] = [floor + parse for floor, parse in zip(found[FLOOR], found[PARSING], strict=True)]
    return found


async def tables(rounds: int, users: int = 5000, messages: int = 10_000) -> list[Table]:
    servers = [*two("websocket", max_connections=2 * users), *of("websocket", many=True)]
    figures = await measure(users, rounds, messages, servers)
    title = f"To one user at a time, {users:,} connected, {BATCH} messages a publish"
    table = Table(title, f"µs of CPU a message of {SIZE} bytes", figures, FLOOR)
    table.aim(title, OURS, ALLOWED, 1.5, "x the floor and parsing the publish")
    table.aim_below(title, OURS, NAMES)
    table.notes.append(
        f"Beside the floor and parsing together ringcast is at {ratio(figures, OURS, ALLOWED):.2f};"
        f" parsing takes {statistics.median(figures[PARSING]):.1f} µs."
    )
    table.show()
    return [table]


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("users", 5000), ("rounds", 5), ("messages", 10_000)):
        ask.add_argument(f"--{name}", type=int, default=default)
    a = ask.parse_args()
    await tables(a.rounds, a.users, a.messages)


if __name__ == "__main__":
    asyncio.run(main())
