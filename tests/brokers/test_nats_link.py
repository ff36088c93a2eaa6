"""A connection to a NATS server that breaks, on the loop that `ringcast serve` runs on."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import uvloop

from gateway.brokers.nats_link import Away, Link, Url
from tests.support.nats import NatsServer

BURST = b"x" * 100_000


def test_a_link_that_breaks_with_much_to_write_ends_whole_and_says_so() -> None:
    """uvloop raises for what is written to a connection that is gone, in the midst of whatever was being let go of."""
    with NatsServer() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_break(server))


async def _break(server: NatsServer) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    before = asyncio.all_tasks()
    link = await Link.open(Url.parse(server.url), server.url)
    lost = asyncio.Event()
    link.on_lost = lost.set
    asked = asyncio.create_task(link.request("topic.nobody", within=20))
    server.pause()
    for _ in range(200):
        await link.send("topic.any", BURST)
        await asyncio.sleep(0)  # the writer comes to where it waits for room
    server.kill()
    async with asyncio.timeout(10):
        await lost.wait()
        with pytest.raises(Away):
            await asked
    assert link.lost
    await link.close()
    await asyncio.sleep(0)
    gc.collect()
    assert asyncio.all_tasks() == before
    assert not complaints


def test_whatever_is_sent_while_a_link_breaks_is_written_or_refused_as_away() -> None:
    """The library notices in several steps, and raises what its loop does in between."""
    with NatsServer() as server:
        for new_loop in (uvloop.new_event_loop, asyncio.new_event_loop):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(_send_while_it_breaks(server))


async def _send_while_it_breaks(server: NatsServer) -> None:
    link = await Link.open(Url.parse(server.url), server.url)
    await asyncio.sleep(0.01)  # its writer waits for something to write
    link.connection.cut()
    refused = 0
    for _ in range(20):
        try:
            await link.send("topic.any", b"x")
        except Away:
            refused += 1
        await asyncio.sleep(0)
    assert refused
    await link.close()
