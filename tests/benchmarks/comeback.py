"""Everybody comes back at once: what a handshake with a token and a cursor costs, where nothing was missed.

    python -m tests.benchmarks.comeback [--clients 10000] [--rounds 5]

Each client has a token of its own (HS256), the cursor of its own two channels, and a node, on Redis, that held their
partitions a moment ago. Microseconds of the server's CPU per client, from the first SYN to the last welcome. Between
two rounds each is published a message, which whoever is connected gets, and whose offset is in the next cursor: so in
the next round each is told that it missed nothing, and sent nothing. Beside it the floor, which answers whatever ends
in an empty line; an application on stock uvicorn and Starlette that checks the token with PyJWT and knows no cursor;
and others, with a token where they know one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

from gateway.message import encode_cursor
from tests.benchmarks.harness import Floor, Load, Numbers, Ringcast, Server, cpu_of, load_of, request
from tests.benchmarks.peers import Centrifugo, Mercure, Missing, Nchan, NodeWs, Stock, left_out
from tests.benchmarks.storm import SUBSCRIBING
from tests.benchmarks.table import Figures, Round, Table, alternate
from tests.support.keys import token
from tests.support.redis import RedisServer

WINDOW = 200  # handshakes under way at a time
BATCH = 500  # lines of a publish
OURS, FLOOR, STOCK = "ringcast", "floor, no token", "uvicorn, Starlette and PyJWT"
CENTRIFUGO, MERCURE = "Centrifugo, a token, nothing to recover", "Mercure, a token, SSE"


def descriptors(server: Server) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in server.pids)


async def spent(server: Server, load: Load) -> float:
    """CPU seconds until all of a load are in."""
    pids = server.pids
    before = cpu_of(*pids)
    load.open(WINDOW)
    return cpu_of(*pids) - before


async def leave(server: Server, load: Load, clients: int) -> None:
    """Close all of a load, and wait until the server has let go of them."""
    without = descriptors(server) - clients
    load.ask("close")
    until = time.monotonic() + 60
    while descriptors(server) > without:
        assert time.monotonic() < until, f"{server.name} still holds connections that were closed"
        await asyncio.sleep(0.05)


class Returning:
    """The clients of ours."""

    def __init__(self, stack: ExitStack, clients: int) -> None:
        self.store = stack.enter_context(RedisServer())
        self.server = stack.enter_context(Ringcast(broker=self.store.url, max_connections=2 * clients))
        self.tokens = [token(f"user-{number}") for number in range(clients)]
        self.channels = [f"user:user-{number}" for number in range(clients)]
        self.numbers = Numbers()
        self.load = self._load([None] * clients)
        self.round_trips: list[float] = []
        self.watch: Callable[[], AbstractContextManager[None]] = nullcontext  # of what is measured
        stack.callback(lambda: self.load.__exit__())

    def _load(self, cursors: Sequence[str | None]) -> Load:
        asked = [request("websocket", one, [], cursor) for one, cursor in zip(self.tokens, cursors, strict=True)]
        return Load(self.server.port, asked, of=OURS)

    def _published(self) -> list[str]:
        """Publish to each; returns the cursor of each."""
        cursors = []
        for first in range(0, len(self.channels), BATCH):
            batch = self.channels[first : first + BATCH]
            for channel, offset in zip(batch, self.server.offsets(self.numbers.messages(batch)), strict=True):
                # One counter for both: a user's channel and that user's jobs are in one partition.
                cursors.append(encode_cursor({channel: offset, "jobs" + channel.removeprefix("user"): offset}))
        return cursors

    def _counts(self) -> tuple[float, float, int]:
        metric = self.server.gateway.metric
        with self.store.client() as client:
            found = client.info("commandstats")
        # Pages and subscriptions; scripts are what the node does by itself all the time (storm.py counts those apart).
        asked = sum(found.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("exec", *SUBSCRIBING))
        return metric("ringcast_resumes_total", result="recovered"), metric("ringcast_resets_total"), asked

    async def begin(self) -> None:
        """They come for the first time."""
        await spent(self.server, self.load)

    async def come(self) -> float:
        """Microseconds each, having missed nothing."""
        clients = len(self.tokens)
        self.load.expect(0)
        cursors = self._published()
        self.load.total(clients)
        await leave(self.server, self.load, clients)
        self.load.__exit__()
        self.load = self._load(cursors)
        recovered, resets, commands = self._counts()
        with self.watch():
            used = await spent(self.server, self.load)
        after = self._counts()
        assert self.load.total(0)["messages"] == 0, "a message came a second time"
        assert after[0] - recovered == 2 * clients, f"{after[0] - recovered} of {2 * clients} channels were recovered"
        assert after[1] == resets, "a client was told of a loss"
        self.round_trips.append((after[2] - commands) / clients)
        return used / clients * 1e6


def opening(server: Server, load: Load, clients: int) -> Round:
    async def come() -> float:
        used = await spent(server, load)
        await leave(server, load, clients)
        return used / clients * 1e6

    return come


async def measure(clients: int, rounds: int, peers: bool = True) -> tuple[Figures, list[float]]:
    """Microseconds each, and our round trips to the store each."""
    with ExitStack() as stack:
        ours = Returning(stack, clients)
        await ours.begin()
        ways: dict[str, Round] = {OURS: ours.come}
        asked = [request("websocket", one, []) for one in ours.tokens]
        floor = stack.enter_context(Floor("websocket"))
        ways[FLOOR] = opening(floor, stack.enter_context(Load(floor.port, asked, of=FLOOR)), clients)
        if peers:
            stock = stack.enter_context(Stock(tokens=True))
            ways[STOCK] = opening(stock, stack.enter_context(Load(stock.port, asked, of=STOCK)), clients)
            others: list[tuple[str, Server]] = [
                ("Node ws, no token", NodeWs()), ("nchan, no token", Nchan()),
                (CENTRIFUGO, Centrifugo()), (MERCURE, Mercure()),
            ]  # fmt: skip
            for name, peer in others:
                try:
                    stack.enter_context(peer)
                except Missing as missing:
                    left_out(str(missing))
                    continue
                load = stack.enter_context(load_of(peer, "websocket", ours.channels))
                ways[name] = opening(peer, load, clients)
        await alternate(1, ways)  # to warm up
        ours.round_trips.clear()
        return await alternate(rounds, ways), ours.round_trips


async def tables(rounds: int, clients: int = 10_000) -> list[Table]:
    figures, round_trips = await measure(clients, rounds)
    title = f"Coming back, {clients:,} clients with a token, a cursor and nothing missed"
    table = Table(title, "µs of CPU each", figures, FLOOR)
    table.aim("Coming back", OURS, FLOOR, 5, "x the floor's accept and handshake")
    table.aim("Coming back", OURS, STOCK, 0.2, "x stock uvicorn and Starlette")
    for peer in (CENTRIFUGO, MERCURE):
        table.aim("Coming back", OURS, peer, 1.0, f"x {peer}")
    store = Table("Coming back: round trips to the store", "pages read and subscriptions each", {OURS: round_trips})
    store.aim_at("Coming back", OURS, 0.1, "pages read and subscriptions at the store each")
    for each in (table, store):
        each.show()
    return [table, store]


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("clients", 10_000), ("rounds", 5)):
        ask.add_argument(f"--{name}", type=int, default=default)
    a = ask.parse_args()
    await tables(a.rounds, a.clients)


if __name__ == "__main__":
    asyncio.run(main())
