"""A publish whose answer was lost: sent again under its id it is stored once, wherever it is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.brokers.base import Broker, Receipt
from gateway.errors import Problem
from gateway.message import Draft
from tests.support.broker_steps import draft, follow, publish
from tests.support.deployments import Deployment
from tests.support.wires import Wires, beside

ROOM = "room:1"
KEYED: dict[str, Any] = {"channels": {"room": {"keyed": True}}}


async def until_told(broker: Broker, once: Draft) -> Receipt:
    """As a publisher that comes again with the same id."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await broker.publish(once)
            except Problem as problem:
                if problem.code != "unavailable":
                    raise
                await asyncio.sleep(0.05)


def tells_of_success(answer: bytes) -> bool:
    """Of a publish: what the script on Redis answers, or JetStream's acknowledgement."""
    return b"\r\nok\r\n" in answer or (b'"seq"' in answer and b'"type"' not in answer)


@pytest.mark.parametrize("keyed", [True, pytest.param(False, marks=pytest.mark.chaos)])
async def test_the_same_key_publishes_once_also_when_the_first_answer_was_lost(
    remote: Deployment, keyed: bool
) -> None:
    async with Wires() as wires, remote.node(**KEYED) as (ann, watcher), wires.node(remote, **KEYED) as (bob, _):
        await beside(follow(ann, ROOM))
        (begun,) = await publish(bob, ROOM)
        fields: dict[str, Any] = {"key": "k", "version": (1,)} if keyed else {}
        once = draft(ROOM, id="7", principal="key:a", idempotent=True, **fields)
        wires.deafen(tells_of_success)
        publishing = asyncio.create_task(until_told(bob, once))
        async with asyncio.timeout(10):
            while not (stored := (await beside(ann.read(ROOM, begun, 10))).messages):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not publishing.done(), "the answer came through"
        receipts = [await beside(until_told(ann, once)), await publishing, await until_told(bob, once)]
        assert {receipt.offset for receipt in receipts} == {stored[0].offset}
        assert [receipt.duplicate for receipt in receipts] == [True] * 3
        (last,) = await beside(publish(ann, ROOM))
        page = await beside(ann.read(ROOM, begun, 10))
        assert [message.offset for message in page.messages] == [stored[0].offset, last]
        await watcher.knows(last)
        assert [m.offset for m in watcher.messages(ROOM) if m.id == "7"] == [stored[0].offset]
