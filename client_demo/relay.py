"""The load balancer of the demo's cluster: each connection to the next node in turn that takes it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

CHUNK = 64 << 10  # bytes that are on their way between two sockets, at most


@asynccontextmanager
async def relay(listener: socket.socket, ports: Sequence[int]) -> AsyncIterator[None]:
    """Pass what comes in on `listener` to one of these ports of this machine, for as long as the context lasts."""
    tasks: set[asyncio.Task[None]] = set()
    turn = 0

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        nonlocal turn
        for _ in ports:
            turn = (turn + 1) % len(ports)
            try:
                return await asyncio.open_connection("127.0.0.1", ports[turn], limit=CHUNK)
            except OSError:
                continue  # this one is down
        return None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if (node := await connect()) is not None:
                await _join(reader, writer, *node)
        finally:
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer), name="demo relay")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, sock=listener, limit=CHUNK)
    try:
        yield
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    from_node: asyncio.StreamReader, to_node: asyncio.StreamWriter,
) -> None:  # fmt: skip
    """Both ways, until either side ends."""
    both = [asyncio.create_task(_pump(reader, to_node)), asyncio.create_task(_pump(from_node, writer))]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        to_node.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        return  # whoever it was, it has gone
