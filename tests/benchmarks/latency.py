"""From publish to subscriber: the median and the 99th percentile of how long a message takes.

    python -m tests.benchmarks.latency [--subscribers 1000] [--rounds 5] [--messages 60]

20 messages a second to all subscribers of one channel. The clock starts when the publisher makes the message; the
floor's when the floor does, so that it has no way to go before.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack

from tests.benchmarks.harness import CHANNEL, SIZE, Load, Numbers, Server, two
from tests.benchmarks.peers import of, opened
from tests.benchmarks.table import Figures, Table

RATE = 20  # messages a second
OURS, FLOOR = "ringcast", "floor, a send() a message"


async def sent(server: Server, load: Load, numbers: Numbers, messages: int) -> dict[str, float]:
    """The latencies, in milliseconds, of messages that are published at their rate."""
    load.expect(0)
    began = time.monotonic()
    for number in range(messages):
        await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        server.publish(numbers.messages([CHANNEL]))
    load.expect(messages)
    return {name: seconds * 1e3 for name, seconds in load.ask("latencies").items()}


async def measure(
    subscribers: int, rounds: int, messages: int, servers: Iterable[Server] | None = None
) -> dict[str, Figures]:
    """Figures of the median and of the 99th percentile."""
    found: dict[str, Figures] = {"p50": {}, "p99": {}}
    async with AsyncExitStack() as stack:
        given = two("websocket") if servers is None else servers
        ways = [(*pair, Numbers()) for pair in opened(stack, given, "websocket", [CHANNEL] * subscribers)]
        for server, load, numbers in ways:
            await sent(server, load, numbers, 5)  # to warm up
        for _ in range(rounds):
            for server, load, numbers in ways:
                for name, figure in (await sent(server, load, numbers, messages)).items():
                    found[name].setdefault(server.name, []).append(figure)
    return found


async def tables(rounds: int, subscribers: int = 1000, messages: int = 60) -> list[Table]:
    servers = [*two("websocket"), *of("websocket", many=True)]
    figures = await measure(subscribers, rounds, messages, servers)
    found = []
    for name, words in (("p50", "median"), ("p99", "99th percentile")):
        title = f"Publish to client, {RATE} messages a second to {subscribers:,}, {words}"
        found.append(Table(title, f"ms, {SIZE} bytes", figures[name], FLOOR))
    found[1].aim(found[1].title, OURS, FLOOR, 2.0, "x the floor's")
    for table in found:
        table.show()
    return found


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("subscribers", 1000), ("rounds", 5), ("messages", 60)):
        ask.add_argument(f"--{name}", type=int, default=default)
    a = ask.parse_args()
    await tables(a.rounds, a.subscribers, a.messages)


if __name__ == "__main__":
    asyncio.run(main())
