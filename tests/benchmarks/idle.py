"""What a connection costs that is opened, and then idle: memory, and CPU while it is pinged.

    python -m tests.benchmarks.idle [--connections 18000] [--rounds 5]

Ours are opened with a token each, on their own two channels. Each round fills new processes; those of the last stay,
and all of them are idle side by side, in the same windows of the clock, pings and their answers included.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack, ExitStack

from tests.benchmarks.harness import HEARTBEAT, Load, Ringcast, Server, cpu_of, load_of, request, resident
from tests.benchmarks.peers import Missing, left_out, of
from tests.benchmarks.table import Figures, Table
from tests.support.keys import token

KINDS = {"websocket": "WebSocket", "sse": "SSE"}
PEER_CONNECTIONS = 2000


def named(server: Server, transport: str) -> str:
    return f"{server.name}, {KINDS[transport]}"


class Crowd:
    """A server and its idle connections."""

    def __init__(self, stack: ExitStack | AsyncExitStack, server: Server, transport: str, connections: int) -> None:
        """Raises Missing."""
        self.server = stack.enter_context(server)
        self.connections = connections
        if isinstance(server, Ringcast):
            asked = [request(transport, token(f"user-{number}"), []) for number in range(connections)]
            self.load = stack.enter_context(Load(server.port, asked, of=server.name))
        else:
            self.load = stack.enter_context(load_of(server, transport, [f"user:{n}" for n in range(connections)]))
        before = resident(*server.pids)
        self.load.open(200)
        self.kibibytes = (resident(*server.pids) - before) / connections / 1024
        self.pids = server.pids

    async def idle(self, seconds: float) -> float:
        """Microseconds of CPU each second."""
        before = cpu_of(*self.pids)
        await asyncio.sleep(seconds)
        return (cpu_of(*self.pids) - before) / seconds / self.connections * 1e6


def servers(connections: int) -> list[tuple[str, Server, int]]:
    found: list[tuple[str, Server, int]] = []
    for transport in KINDS:
        found.append((transport, Ringcast(max_connections=2 * connections), connections))
        found += [(transport, peer, PEER_CONNECTIONS) for peer in of(transport)]
    return found


def memory(transport: str, connections: int) -> float:
    """KiB a connection of ours, once."""
    with ExitStack() as stack:
        return Crowd(stack, Ringcast(max_connections=2 * connections), transport, connections).kibibytes


async def tables(rounds: int, connections: int = 18_000) -> list[Table]:
    kibibytes: Figures = {}
    micros: Figures = {}
    for number in range(rounds):
        with ExitStack() as all_of_them:
            stack = all_of_them if number == rounds - 1 else ExitStack()
            crowds: dict[str, Crowd] = {}
            for transport, server, count in servers(connections):
                name = named(server, transport)
                try:
                    crowds[name] = Crowd(stack, server, transport, count)
                except Missing as missing:
                    left_out(str(missing))
                    continue
                kibibytes.setdefault(name, []).append(crowds[name].kibibytes)
                if stack is not all_of_them:
                    stack.close()  # one after another: they would not all fit
            if stack is all_of_them:
                for _ in range(rounds):
                    spent = await asyncio.gather(*(crowd.idle(HEARTBEAT) for crowd in crowds.values()))
                    for name, figure in zip(crowds, spent, strict=True):
                        micros.setdefault(name, []).append(figure)
                for crowd in crowds.values():
                    crowd.load.expect(0)  # nobody was cut
    title = f"An idle connection, {connections:,} of them; of others {PEER_CONNECTIONS:,}"
    memory, cpu = Table(title, "KiB of memory (RSS) each", kibibytes), Table(title, "µs of CPU a second each", micros)
    for kind in KINDS.values():
        memory.aim_at(f"Memory of an idle {kind} connection", f"ringcast, {kind}", 3.0, "KiB")
        cpu.aim_at(f"CPU of an idle {kind} connection", f"ringcast, {kind}", 1.5, "µs a second")
    for table in (memory, cpu):
        table.show()
    return [memory, cpu]


async def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("connections", 18_000), ("rounds", 5)):
        ask.add_argument(f"--{name}", type=int, default=default)
    a = ask.parse_args()
    await tables(a.rounds, a.connections)


if __name__ == "__main__":
    asyncio.run(main())
