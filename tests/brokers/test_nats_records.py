"""Take-over records that come while a node asks for them: no offset is ever made of what was found before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.brokers.base import Broker
from gateway.brokers.chain import Claim
from gateway.brokers.nats import NatsBroker
from gateway.brokers.nats_api import Api, Stored
from gateway.brokers.nats_link import Link
from gateway.message import new_id
from tests.support.broker_steps import NEWS, draft, follow, publish, read_all
from tests.support.nats import NatsAlone


async def take_over(broker: Broker, channel: str = NEWS) -> None:
    """Have a record written, as a node does that knows of more than the stream holds."""
    assert isinstance(broker, NatsBroker)
    number = broker.partition(channel)
    history = broker.lines[number].lineage.history
    top, _ = await broker.lines.check(Api(broker.link), number, [])
    await broker.lines.check(Api(broker.link), number, [Claim(top + 1, history, 0)])


async def turn(broker: Broker) -> None:
    """Have a record written as for another server process, where nothing was lost."""
    assert isinstance(broker, NatsBroker)
    link = await Link.open(broker.url, broker.url.servers[0])
    link.process = new_id()
    await broker.lines.ready(Api(link), broker.lines[broker.partition(NEWS)])
    await link.close()


async def test_an_answer_that_is_older_than_an_announced_record_does_not_hide_it(
    alone: NatsAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alone.node(partitions=1) as (ann, _), alone.node(partitions=1) as (bob, _):
        assert isinstance(bob, NatsBroker)
        await follow(bob, NEWS)
        for broker in (ann, bob):
            await publish(broker, NEWS)
        number = bob.partition(NEWS)
        line = bob.lines[number]
        late, ask, api = asyncio.Event(), Api.last, Api(bob.link)

        async def last(self: Api, stream: str, subject: str) -> Stored | None:
            found = await ask(self, stream, subject)
            if self is api and not late.is_set():
                before = line.lineage.seq
                await turn(ann)
                while line.lineage.seq == before:  # noqa: ASYNC110 - until its announcement has come
                    await asyncio.sleep(0.01)
                late.set()
            return found

        monkeypatch.setattr(Api, "last", last)
        bob.lines.doubt(number)
        await bob.lines.look(api, line)
        assert late.is_set()
        receipt = await bob.publish(draft(NEWS))
        offsets, page = await read_all(ann, NEWS, receipt.offset - 1)
        assert offsets == [receipt.offset]
        assert page.continuous


async def test_a_page_holds_nothing_that_came_behind_a_record_unheard_of(
    alone: NatsAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is stored while a page is read may lie behind a record whose announcement is still on its way."""
    async with alone.node(partitions=1) as (ann, _), alone.node(partitions=1) as (bob, _):
        assert isinstance(bob, NatsBroker)
        (first,) = await publish(ann, NEWS)
        monkeypatch.setattr(bob.lines, "doubt", lambda number: None)  # it is on its way for as long as this takes
        look, told = bob.lines.look, list[int]()

        async def once(*args: object) -> int:
            end = await look(*args)  # type: ignore[arg-type]
            if not told:
                told.append(0)
                await take_over(ann)
                told[:] = await publish(ann, NEWS)
            return end

        monkeypatch.setattr(bob.lines, "look", once)
        seen, since = list[int](), first - 1
        while not seen or seen[-1] < told[-1]:
            page = await bob.read(NEWS, since, 10)
            seen += [message.offset for message in page.messages]
            since = page.reached
        assert seen == [first, *told]


async def test_a_snapshot_has_the_offsets_that_a_record_unheard_of_gives(
    alone: NatsAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed: dict[str, Any] = {"partitions": 1, "channels": {"room": {"keyed": True}}}
    async with alone.node(**keyed) as (ann, _), alone.node(**keyed) as (bob, _):
        assert isinstance(bob, NatsBroker)
        first = await ann.publish(draft("room:1", key="a"))
        monkeypatch.setattr(bob.lines, "doubt", lambda number: None)
        look, told = bob.lines.look, list[int]()

        async def once(*args: object) -> int:
            end = await look(*args)  # type: ignore[arg-type]
            if not told:
                told.append(0)
                await take_over(ann, "room:1")
                told[:] = [(await ann.publish(draft("room:1", key="b"))).offset]
            return end

        monkeypatch.setattr(bob.lines, "look", once)
        snapshot = await bob.snapshot("room:1")
        assert [message.offset for message in snapshot.messages] == [first.offset, *told]
        assert snapshot.offset == told[0]
