"""Whether a delivery costs more where there are more subscribers or channels, and how long the loop is held meanwhile.

    python -m tests.benchmarks.growth [--subscribers 18000] [--channels 200000] [--rounds 5]

Microseconds of the gateway's CPU per delivery with few and with many subscribers of one channel, and with few and many
other channels that it knows; the floor has the same subscribers. The loop's lag is taken every 5 ms inside the gateway,
while one message a second goes to all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from contextlib import AsyncExitStack

from tests.benchmarks.fanout import round_of
from tests.benchmarks.harness import CHANNEL, SIZE, Numbers, Ringcast, two
from tests.benchmarks.peers import opened
from tests.benchmarks.table import Figures, Round, Table, alternate

FEW = 1000  # subscribers
FEW_CHANNELS = 200
BATCH = 500  # lines of a publish
LAG_WITHIN = 0.02  # seconds


async def subscribers(rounds: int, many: int, deliveries: int) -> Table:
    """Few and many subscribers of one channel."""
    named: dict[str, Round] = {}
    async with AsyncExitStack() as stack:
        for count in (FEW, many):
            for server, load in opened(
                stack, two("websocket", max_connections=2 * many), "websocket", [CHANNEL] * count
            ):
                work = round_of(server, load, 1, max(deliveries // count, 2), count)
                named[f"{server.name.partition(',')[0]}, {count:,} subscribers"] = work
        await alternate(1, named)  # to warm up
        figures = await alternate(rounds, named)
    few, many_of = f"ringcast, {FEW:,} subscribers", f"ringcast, {many:,} subscribers"
    title = f"Growth from {FEW:,} to {many:,} subscribers"
    table = Table(title, f"µs of CPU a delivery of {SIZE} bytes", figures, few)
    table.aim(title, many_of, few, 1.15, f"x that at {FEW:,}")
    return table


async def channels(rounds: int, many: int, deliveries: int) -> Table:
    """Few and many channels that were published to, and one with subscribers."""
    named: dict[str, Round] = {}
    async with AsyncExitStack() as stack:
        for count in (FEW_CHANNELS, many):
            server = Ringcast()
            ((_, load),) = opened(stack, [server], "websocket", [CHANNEL] * FEW)
            numbers = Numbers()
            for first in range(0, count, BATCH):
                server.publish(numbers.messages(f"topic:{n}" for n in range(first, min(first + BATCH, count))))
            named[f"{count:,} channels"] = round_of(server, load, 1, deliveries // FEW, FEW)
        await alternate(1, named)  # to warm up
        figures = await alternate(rounds, named)
    title = f"Growth from {FEW_CHANNELS:,} to {many:,} known channels"
    few = f"{FEW_CHANNELS:,} channels"
    table = Table(title, f"µs of CPU a delivery of {SIZE} bytes", figures, few)
    table.aim(title, f"{many:,} channels", few, 1.15, f"x that at {FEW_CHANNELS:,}")
    return table


async def lag(rounds: int, many: int, seconds: int = 5) -> Table:
    """Milliseconds by which the gateway's loop is late: the 99th percentile and the most of each round."""
    figures: Figures = {"99th percentile": [], "most": []}
    async with AsyncExitStack() as stack:
        server = Ringcast(max_connections=2 * many, module="tests.benchmarks.lag")
        ((_, load),) = opened(stack, [server], "websocket", [CHANNEL] * many)
        numbers = Numbers()
        for number in range(rounds + 1):
            load.expect(0)
            await told(server)  # what was before is forgotten
            began = time.monotonic()
            for second in range(seconds):
                await asyncio.sleep(max(0.0, began + second - time.monotonic()))
                server.publish(numbers.messages([CHANNEL]))
            load.expect(seconds)
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
            p99, most = await told(server)
            if number:  # the first is to warm up
                figures["99th percentile"].append(p99 * 1e3)
                figures["most"].append(most * 1e3)
    title = f"The loop's lag, a message a second to {many:,}"
    table = Table(title, "ms", figures)
    table.aim_at(title, "99th percentile", LAG_WITHIN * 1e3, "ms, 99th percentile")
    return table


async def told(server: Ringcast) -> tuple[float, float]:
    """What the gateway says of its loop since it was last asked: the 99th percentile and the most, in seconds."""
    said = server.gateway.stderr.count("\nlag ")
    server.gateway.signal(signal.SIGUSR1)
    await server.gateway.until(lambda: server.gateway.stderr.count("\nlag ") > said, within=30)
    p99, most = json.loads(server.gateway.stderr.rpartition("\nlag ")[2].partition("\n")[0])
    return p99, most


async def tables(
    rounds: int, subscribed: int = 18_000, known: int = 200_000, deliveries: int = 72_000
) -> list[Table]:  # fmt: skip
    found = [await subscribers(rounds, subscribed, deliveries), await channels(rounds, known, deliveries)]
    found.append(await lag(rounds, subscribed))
    for table in found:
        table.show()
    return found


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("subscribers", 18_000), ("channels", 200_000), ("rounds", 5)):
        ask.add_argument(f"--{name}", type=int, default=default)
    a = ask.parse_args()
    await tables(a.rounds, a.subscribers, a.channels)


if __name__ == "__main__":
    asyncio.run(main())
