"""Server CPU per delivery: one channel and its many subscribers, beside a server that does the system calls alone.

    python -m tests.benchmarks.fanout [--subscribers 1000] [--rounds 5] [--messages 100]

WebSocket and SSE, below ASGI and through it, a message at a time, two and twenty together, beside other gateways. What
is lost, repeated or out of order fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack

from tests.benchmarks.harness import CHANNEL, SIZE, Floor, Load, Numbers, Ringcast, Server, cpu_of, two
from tests.benchmarks.peers import NAMES, of, opened
from tests.benchmarks.table import Figures, Round, Table, alternate

OURS, ASGI, FLOOR, ONE_SEND = "ringcast", "ringcast through ASGI", "floor, a send() a message", "floor, one send()"
CLIENT, CODE = "the subscribers: all", "the subscribers: their own code"


def round_of(server: Server, load: Load, burst: int, messages: int, subscribers: int) -> Round:
    """Microseconds of the server's CPU per delivery."""
    numbers, pids = Numbers(), server.pids

    async def work() -> float:
        load.expect(0)
        before = cpu_of(*pids)
        for done in range(burst, messages + 1, burst):
            server.publish(numbers.messages([CHANNEL] * burst))
            load.expect(done)
        return (cpu_of(*pids) - before) / (messages * subscribers) * 1e6

    return work


def joined(work: Round, floor: Floor) -> Round:
    async def one_send() -> float:
        floor.joined = True
        try:
            return await work()
        finally:
            floor.joined = False

    return one_send


async def measure(
    transport: str, subscribers: int, rounds: int, burst: int = 1, messages: int = 100,
    servers: Iterable[Server] | None = None,
) -> Figures:  # fmt: skip
    """Figures of ours and the floor, or of the servers given, which must hold a Floor."""
    given = two(transport) if servers is None else servers
    async with AsyncExitStack() as stack:
        found: dict[str, Round] = {}
        for server, load in opened(stack, given, transport, [CHANNEL] * subscribers):
            found[server.name] = round_of(server, load, burst, messages, subscribers)
            if burst > 1 and isinstance(server, Floor):
                found[ONE_SEND] = joined(found[server.name], server)
        await alternate(1, found)  # to warm up
        return await alternate(rounds, found)


async def client(rounds: int, subscribers: int = 1000, messages: int = 100) -> Table:
    """What the subscribers themselves cost, fed by the floor: none of it is counted for a server."""
    figures: Figures = {FLOOR: [], CLIENT: [], CODE: []}
    async with AsyncExitStack() as stack:
        ((floor, load),) = opened(stack, [Floor("websocket")], "websocket", [CHANNEL] * subscribers)
        work = round_of(floor, load, 1, messages, subscribers)
        await work()
        for _ in range(rounds):
            before = load.expect(0)
            figures[FLOOR].append(await work())
            after = load.check(load.ask("total 0"))
            for name, kind in ((CLIENT, "cpu"), (CODE, "user")):
                figures[name].append((after[kind] - before[kind]) / after["messages"] * 1e6)
    return Table("The subscribers' own cost", "µs of CPU a message", figures, FLOOR, notes=[
        "What the kernel does to receive is most of it, and an acknowledgement of TCP for each message most of that."
    ])  # fmt: skip


def titled(transport: str, subscribers: int, burst: int) -> str:
    kind = "WebSocket" if transport == "websocket" else "SSE"
    together = "a message at a time" if burst == 1 else f"{burst} messages together"
    return f"Fan-out to {subscribers:,} over {kind}, {together}"


async def tables(rounds: int, subscribers: tuple[int, ...] = (1000, 5000), messages: int = 100) -> list[Table]:
    found = [await client(rounds)]
    found[0].show()
    for transport in ("websocket", "sse"):
        for count in subscribers:
            for burst in (1, 2, 20):
                full = burst == 1 and count == subscribers[0]
                servers = two(transport)
                if full:
                    servers.insert(1, Ringcast(native=False))
                if burst == 1:
                    servers += of(transport, many=not full)
                least = messages * 1000 // count
                figures = await measure(transport, count, rounds, burst, max(least - least % burst, 5 * burst), servers)
                table = Table(titled(transport, count, burst), f"µs of CPU a delivery of {SIZE} bytes", figures, FLOOR)
                if burst == 1:
                    limit = 1.4 if transport == "websocket" else 1.5
                    table.aim(table.title, OURS, FLOOR, limit, "x the floor")
                    table.aim_below(table.title, OURS, NAMES)
                elif burst == 2:
                    table.aim(table.title, OURS, FLOOR, 1.25, "x the floor with a send() a message")
                    table.aim(table.title, OURS, ONE_SEND, 1.25, "x the floor with one send() for both")
                else:
                    table.aim(table.title, OURS, FLOOR, 0.3, "x the floor with a send() a message")
                table.show()
                found.append(table)
    return found


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--subscribers", type=int, nargs="+", default=[1000, 5000])
    for name, default in (("rounds", 5), ("messages", 100)):
        ask.add_argument(f"--{name}", type=int, default=default)
    a = ask.parse_args()
    await tables(a.rounds, tuple(a.subscribers), a.messages)


if __name__ == "__main__":
    asyncio.run(main())
