"""What a publish costs: a request each beside an endpoint that only reads the body, and a line each beside that.

    python -m tests.benchmarks.publish [--rounds 5] [--messages 4000]

Eight connections post one message each at a time; lines come 500 to a request. Microseconds of the server's CPU per
message. Each is to be acknowledged, and each connection's channel has a subscriber who gets each once and in order,
and who is awake all the time, as one over a network need not be woken by the server.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from tests.benchmarks.harness import SIZE, Numbers, Ringcast, Server, cpu_of
from tests.benchmarks.peers import Stock, opened
from tests.benchmarks.sender import Sender, post
from tests.benchmarks.table import Figures, Round, Table, alternate
from tests.support.keys import API_KEY

CHANNELS = [f"topic:bench-{number}" for number in range(8)]  # one of each connection
LINES = 500  # of one request
SINGLE, NDJSON, EMPTY = "ringcast, a POST each", "ringcast, a line each", "uvicorn and Starlette: reads the body"


def posts(senders: list[Sender], path: str, messages: int, numbers: Numbers) -> None:
    """One message a request, on all connections at once."""
    for _ in range(messages // len(senders)):
        for sender, (channel, data) in zip(senders, numbers.messages(CHANNELS), strict=True):
            body = f'{{"channel":"{channel}","event":"bench","data":{data}}}'
            sender.write(post(path, body.encode(), key=API_KEY))
        for sender in senders:
            sender.read()


def lines(server: Server, messages: int, numbers: Numbers) -> None:
    for _ in range(messages // LINES):
        server.publish(numbers.messages(CHANNELS[n % len(CHANNELS)] for n in range(LINES)))


async def measure(rounds: int, messages: int) -> tuple[Figures, Figures]:
    """CPU per message, and messages a second."""
    rates: Figures = {}
    async with AsyncExitStack() as stack:
        servers: list[Server] = [Ringcast(), Stock()]
        (ours, load), (stock, _) = opened(stack, servers, "websocket", CHANNELS)
        numbers = Numbers()

        def way(name: str, server: Server, work: Callable[[], None]) -> Round:
            pids = server.pids

            async def figure() -> float:
                before, began = cpu_of(*pids), time.monotonic()
                work()
                rates.setdefault(name, []).append(messages / (time.monotonic() - began))
                return (cpu_of(*pids) - before) / messages * 1e6

            return figure

        def counted(work: Callable[[], None]) -> Callable[[], None]:
            def checked() -> None:
                load.expect(0)
                load.tell(f"total {messages}")
                work()
                load.totalled(messages)

            return checked

        def connected(server: Server) -> list[Sender]:
            senders = [Sender(server.port) for _ in CHANNELS]
            for sender in senders:
                stack.callback(sender.close)
            return senders

        to_ours, to_stock, others = connected(ours), connected(stock), Numbers()
        ways = {
            SINGLE: way(SINGLE, ours, counted(lambda: posts(to_ours, "/v1/publish", messages, numbers))),
            EMPTY: way(EMPTY, stock, lambda: posts(to_stock, "/empty", messages, others)),
            NDJSON: way(NDJSON, ours, counted(lambda: lines(ours, messages, numbers))),
        }
        await alternate(1, ways)  # to warm up
        rates.clear()
        return await alternate(rounds, ways), rates


async def tables(rounds: int, messages: int = 4000) -> list[Table]:
    figures, rates = await measure(rounds, messages)
    cost = Table("A publish", f"µs of CPU a message of {SIZE} bytes", figures, EMPTY)
    cost.aim("A publish, a POST each", SINGLE, EMPTY, 1.3, "x an empty Starlette endpoint that reads the body")
    rate = Table("Publishing", "messages a second, by one publisher", rates, SINGLE)
    rate.aim("Publishing, a line each", NDJSON, SINGLE, 20, "x the rate of a POST each")
    for goal in rate.goals:
        goal.at_least = True
    for table in (cost, rate):
        table.show()
    return [cost, rate]


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("messages", 4000)):
        ask.add_argument(f"--{name}", type=int, default=default)
    a = ask.parse_args()
    await tables(a.rounds, a.messages)


if __name__ == "__main__":
    asyncio.run(main())
