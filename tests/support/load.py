"""A crowd of clients and a stream of publishes through one address, both written into a ledger."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from gateway.verify.load import Load
from tests.support.command import ROOT
from tests.support.crowd import Began, Client, Command, Gave, Note, Saw, Stopped, WasReset
from tests.support.keys import API_KEY, token
from tests.support.ledger import StoreLedger

TRANSPORTS = ("ws", "sse", "poll")
JOINED_WITHIN = 60.0  # seconds for all clients to have their first positions


class Crowd:
    """Processes of clients, which follow for one ledger at a time."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes
        self.ledger: StoreLedger | None = None
        self._began = asyncio.Event()
        self._stopped: asyncio.Queue[Stopped] = asyncio.Queue()

    @asynccontextmanager
    async def following(self, ledger: StoreLedger, url: str, clients: Sequence[Client]) -> AsyncIterator[list[Stopped]]:
        """Clients, spread over the processes, each with a position for all of its channels.

        When they have ended the list says how busy each process was.
        """
        busy: list[Stopped] = []
        self.ledger = ledger
        try:
            await self._join(ledger, url, clients)
            yield busy
        finally:
            for process in self._processes:
                await self._tell(process, Command())
            busy += [await self._stopped.get() for _ in self._processes]
            self.ledger = None

    async def _join(self, ledger: StoreLedger, url: str, clients: Sequence[Client]) -> None:
        for number, process in enumerate(self._processes):
            await self._tell(process, Command(url, list(clients[number :: len(self._processes)])))
        async with asyncio.timeout(JOINED_WITHIN):
            while any(set(client.channels) - ledger.clients.get(client.name, {}).keys() for client in clients):
                assert not ledger.faults, ledger.faults
                self._began.clear()
                await self._began.wait()

    @staticmethod
    async def _tell(process: asyncio.subprocess.Process, command: Command) -> None:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(command) + b"\n")
        await process.stdin.drain()

    async def listen(self, process: asyncio.subprocess.Process) -> None:
        """Write the notes of one process into the ledger, until it ends."""
        assert process.stdout is not None
        decode = msgspec.json.Decoder[Note](Note).decode
        while line := await process.stdout.readline():
            self._note(decode(line))

    def _note(self, note: Note) -> None:
        if isinstance(note, Stopped):
            self._stopped.put_nowait(note)
            return
        ledger = self.ledger
        assert ledger is not None
        match note:
            case Saw():
                ledger.saw(note.client, note.channel, note.offset, note.id, note.at)
            case Began():
                ledger.began(note.client, note.channel, note.offset)
                self._began.set()
            case WasReset():
                if note.channel in ledger.clients[note.client]:  # else its own `user:`, which nobody publishes to
                    ledger.was_reset(note.client, note.channel, note.offset, note.reason, note.at)
            case Gave():
                ledger.ended(note.client, note.why)
                self._began.set()


@asynccontextmanager
async def crowd(processes: int) -> AsyncIterator[Crowd]:
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.crowd", cwd=ROOT, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, limit=1 << 20,
        )
        for _ in range(processes)
    ]  # fmt: skip
    found = Crowd(started)
    listening = [asyncio.create_task(found.listen(process)) for process in started]
    try:
        yield found
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await asyncio.gather(*listening)


def clients_of(channels: Sequence[str], count: int, each: int, prefix: str) -> list[Client]:
    """`count` clients that follow `each` channels evenly; of ten, one changes its transport, and so its node, often."""
    turn = itertools.cycle(channels)
    found = []
    for number in range(count):
        name = f"{prefix}{number}"
        mine = [next(turn) for _ in range(each)]
        wanders = number % 10 == 9
        transports = list(TRANSPORTS) if wanders else [TRANSPORTS[number % 3]]
        stay = 1.5 + number % 7 * 0.3 if wanders else None
        found.append(Client(name, token(name, ["topic:*", "room:*"], expires_in=3600), mine, transports, stay))
    return found


def load(ledger: StoreLedger, url: str, channels: Sequence[str], rate: float) -> Load:
    """Publishes to these channels, with keys where their namespace has some."""
    return Load(ledger, [url], API_KEY, channels, rate, key=_key)


def _key(channel: str, number: int) -> str | None:
    return f"k{number % 5}" if channel.startswith("room:") else None
