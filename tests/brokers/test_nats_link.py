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


async def test_what_is_listened_to_is_passed_on_as_it_is_read_in_the_order_of_the_link() -> None:
    """By plain calls, without a task for each subject; one that fails costs nobody what comes behind it."""
    heard: list[tuple[bytes, bytes, bytes]] = []
    done = asyncio.Event()

    def hear(subject: bytes, payload: bytes, headers: bytes) -> None:
        heard.append((subject, payload, headers))
        if payload == b"3":
            raise RuntimeError("of whoever is told")
        if payload == b"9":
            done.set()

    with NatsServer() as server:
        link = await Link.open(Url.parse(server.url), server.url)
        before = asyncio.all_tasks()
        one, two = await link.listen("topic.one.>", hear), await link.listen("topic.two", hear)
        assert asyncio.all_tasks() == before
        subjects = [("topic.one.a", "topic.two")[number % 2] for number in range(10)]
        for number, subject in enumerate(subjects):
            await link.send(subject, b"%d" % number, {"Kind": "odd"} if number % 2 else None)
        async with asyncio.timeout(5):
            await done.wait()
        assert [(subject.decode(), payload) for subject, payload, _ in heard] == [
            (subject, b"%d" % number) for number, subject in enumerate(subjects)
        ]
        assert [b"Kind: odd\r\n" in headers for *_, headers in heard] == [bool(number % 2) for number in range(10)]
        await one.unsubscribe()
        await two.unsubscribe()
        assert (await link.request(await echo(link), b"?")).data == b"?"
        await link.close()
    assert len(heard) == 10


async def echo(link: Link) -> str:
    """A subject on which something answers, in its own words."""

    async def answer(msg: Any) -> None:
        await msg.respond(msg.data)

    await link.connection.subscribe("topic.echo", cb=answer)
    for subject in ("topic.one.a", "topic.two"):
        await link.send(subject, b"after it was left")
    return "topic.echo"
