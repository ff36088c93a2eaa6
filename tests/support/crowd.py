"""Many of the project's own subscribers in a process of their own, which tell what their applications saw.

    python -m tests.support.crowd

Commands come as lines of JSON on stdin, notes go to stdout in batches, a line of JSON each. Times are those of the
monotonic clock, which all processes of the machine share.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import sys
import time

import msgspec
import uvloop

from gateway.client import Message, Reset, Subscriber
from gateway.message import decode_cursor

FLUSH = 0.05  # seconds between two batches of notes
LAG = 0.02  # seconds between two looks at how late this process is


class Client(msgspec.Struct):
    """One application. It changes its transport with each stay, in seconds; without one it stays for ever."""

    name: str
    token: str
    channels: list[str]
    transports: list[str]
    stay: float | None = None


class Command(msgspec.Struct):
    """`start` some clients, or end all there are."""

    url: str = ""
    start: list[Client] = []


class Began(msgspec.Struct, tag="began", array_like=True):
    client: str
    channel: str
    offset: int


class Saw(msgspec.Struct, tag="saw", array_like=True):
    client: str
    channel: str
    offset: int
    id: str
    at: float


class WasReset(msgspec.Struct, tag="reset", array_like=True):
    client: str
    channel: str
    offset: int
    reason: str
    at: float


class Gave(msgspec.Struct, tag="gave up", array_like=True):
    client: str
    why: str


class Stopped(msgspec.Struct, tag="stopped", array_like=True):
    """All clients have ended. `cpu` seconds were used in `wall`, and the loop was `late` seconds at worst."""

    cpu: float
    wall: float
    late: float


Note = Saw | Began | WasReset | Gave | Stopped


class Crowd:
    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.clients: list[asyncio.Task[None]] = []
        self.late = 0.0
        self.since = time.monotonic()
        self.cpu = 0.0

    def start(self, command: Command) -> None:
        if not self.clients:
            self.late, self.since, self.cpu = 0.0, time.monotonic(), _cpu()
        for client in command.start:
            self.clients.append(asyncio.create_task(self._follow(command.url, client), name=client.name))

    async def stop(self) -> None:
        for task in self.clients:
            task.cancel()
        await asyncio.gather(*self.clients, return_exceptions=True)
        self.clients.clear()
        self.notes.append(Stopped(_cpu() - self.cpu, time.monotonic() - self.since, self.late))

    async def _follow(self, url: str, client: Client) -> None:
        cursor: str | None = None
        try:
            for transport in itertools.cycle(client.transports):
                subscriber = Subscriber(url, client.token, client.channels, cursor=cursor, transport=transport)
                beginning = asyncio.create_task(self._begin(client, subscriber)) if cursor is None else None
                try:
                    async with subscriber, asyncio.timeout(client.stay):
                        async for event in subscriber:
                            at = time.monotonic()
                            if isinstance(event, Message):
                                self.notes.append(Saw(client.name, event.channel, event.offset, event.id, at))
                            elif isinstance(event, Reset):
                                self.notes.append(WasReset(client.name, event.channel, event.offset, event.reason, at))
                except TimeoutError:
                    cursor = subscriber.cursor
                finally:
                    if beginning is not None:
                        beginning.cancel()
        except Exception as error:  # told, whatever it was: a client that ends is what the ledger is looking for
            self.notes.append(Gave(client.name, repr(error)))

    async def _begin(self, client: Client, subscriber: Subscriber) -> None:
        """Note the positions from which on the client is owed everything, as soon as it has them all."""
        wanted = set(client.channels)
        while True:
            at = decode_cursor(subscriber.cursor, 1 << 20) if subscriber.cursor else {}
            if wanted <= at.keys():
                break
            await asyncio.sleep(LAG)
        self.notes += [Began(client.name, channel, at[channel]) for channel in client.channels]

    async def keep_time(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG
            await asyncio.sleep(LAG)
            self.late = max(self.late, loop.time() - due)

    async def tell(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FLUSH)
            if self.notes:
                notes, self.notes = self.notes, []
                text = b"".join(msgspec.json.encode(note) + b"\n" for note in notes)
                await loop.run_in_executor(None, _write, text)


def _write(text: bytes) -> None:
    view = memoryview(text)
    while view:
        view = view[os.write(1, view) :]


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    crowd = Crowd()
    chores = [asyncio.create_task(crowd.keep_time()), asyncio.create_task(crowd.tell())]
    decoder = msgspec.json.Decoder(Command)
    while line := await reader.readline():
        command = decoder.decode(line)
        if command.start:
            crowd.start(command)
        else:
            await crowd.stop()
    for chore in chores:
        chore.cancel()


if __name__ == "__main__":
    uvloop.run(main())
