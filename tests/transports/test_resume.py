"""Order, and what a client gets that comes back: everything once, over whichever transport."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.clients import TRANSPORTS, Client, Frame, connect, decode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.publishing import publish, publish_lines

ANN = token("ann", ["*"])


def data(frames: list[Frame]) -> list[Any]:
    return [frame["data"] for frame in frames]


async def test_messages_come_in_the_order_of_their_offsets(gateway: Gateway, transport: str) -> None:
    async with await connect(transport, gateway.url, ANN, channels=["deep:order"]) as client:
        await client.joined()
        offsets = await publish(gateway, "deep:order", range(3000))
        assert offsets == sorted(set(offsets))
        frames = await client.through(offsets[-1])
    assert [frame["offset"] for frame in frames] == offsets
    assert data(frames) == list(range(3000))


async def test_every_channel_of_a_session_keeps_its_own_order(gateway: Gateway, transport: str) -> None:
    channels = [f"topic:many-{n}" for n in range(20)]
    async with await connect(transport, gateway.url, ANN, channels=channels) as client:
        await client.joined()
        lines = [f'{{"channel":"{channels[n % 20]}","data":{n}}}' for n in range(2000)]
        offsets = dict(zip(range(2000), await publish_lines(gateway, lines), strict=True))
        last = {channel: offsets[1980 + n] for n, channel in enumerate(channels)}
        frames: list[Frame] = []
        while last:
            frames.append(await client.message())
            if last.get(frames[-1]["channel"]) == frames[-1]["offset"]:
                del last[frames[-1]["channel"]]
    for n, channel in enumerate(channels):
        assert data([f for f in frames if f["channel"] == channel]) == list(range(n, 2000, 20))


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_a_client_that_was_cut_off_gets_each_message_once(gateway: Gateway, transport: str, end: str) -> None:
    """Cut again and again while messages come: what it received before each cut and after it is all there is."""
    channel = f"deep:cut-{transport}-{end}"
    client = await connect(transport, gateway.url, ANN, channels=[channel])
    start = (await client.joined())[channel]
    publishing = asyncio.create_task(publish(gateway, channel, range(4000)))
    received: list[Frame] = []
    for share in (1, 5, 100, 37, 400):
        received += await client.messages(share)
        await (client.cut() if end == "reset" else client.close())
        client = await connect(transport, gateway.url, ANN, channels=[channel], cursor=client.cursor)
    offsets = await publishing
    received += await client.through(offsets[-1])
    await client.close()
    assert start < offsets[0]
    assert [frame["offset"] for frame in received] == offsets
    assert data(received) == list(range(4000))


@pytest.mark.parametrize("other", TRANSPORTS)
async def test_a_cursor_of_one_transport_resumes_on_each(gateway: Gateway, transport: str, other: str) -> None:
    channels = ["topic:one", "topic:two"]
    async with await connect(transport, gateway.url, ANN, channels=channels) as client:
        await client.joined()
        one = await publish(gateway, "topic:one", range(5))
        await client.through(one[-1])
        await client.cut()
    two = await publish(gateway, "topic:two", range(5))
    one = await publish(gateway, "topic:one", range(5, 8))
    async with await connect(other, gateway.url, ANN, channels=channels, cursor=client.cursor) as client:
        one += await publish(gateway, "topic:one", [8])
        frames = await client.through(one[-1])
        await client.cut()
    assert all(frame["type"] == "message" for frame in frames)
    assert [f["offset"] for f in frames if f["channel"] == "topic:one"] == one
    assert [f["offset"] for f in frames if f["channel"] == "topic:two"] == two


async def told_cursor(client: Client) -> str:
    """The cursor that the gateway itself gave: in a checkpoint, in a ping, or with a poll's answer."""
    async with asyncio.timeout(10):
        while not (frame := await client.receive()).get("cursor"):
            pass
    return str(frame["cursor"])


@pytest.mark.parametrize("other", TRANSPORTS)
async def test_a_cursor_that_the_gateway_told_resumes_on_each(gateway: Gateway, transport: str, other: str) -> None:
    """It names every channel of the session, also those nobody has published to."""
    channels = ["short:told", "short:never-used"]
    async with await connect(transport, gateway.url, ANN, channels=channels) as client:
        await client.joined()
        first = await publish(gateway, "short:told", ["before"])
        cursor = await told_cursor(client)
        async with asyncio.timeout(10):
            while decode_cursor(cursor)["short:told"] < first[0]:
                cursor = await told_cursor(client)
    assert set(decode_cursor(cursor)) == {*channels, "user:ann", "jobs:ann"}
    after = await publish(gateway, "short:told", ["after"]) + await publish(gateway, "short:never-used", ["used"])
    async with await connect(other, gateway.url, ANN, channels=channels, cursor=cursor) as client:
        frames = await client.messages(2)
    assert sorted(frame["offset"] for frame in frames) == after


async def test_a_cut_in_the_middle_of_catching_up_loses_nothing(gateway: Gateway, transport: str) -> None:
    """Each time it comes back it gets as far as it reads, and goes on from there the next time."""
    channel = f"deep:catch-up-{transport}"
    async with await connect(transport, gateway.url, ANN, channels=[channel]) as client:
        await client.joined()
    offsets = await publish(gateway, channel, range(5000))
    received: list[Frame] = []
    while len(received) < len(offsets):
        async with await connect(transport, gateway.url, ANN, channels=[channel], cursor=client.cursor) as client:
            received += await client.messages(min(1700, len(offsets) - len(received)))
            await client.cut()
    assert [frame["offset"] for frame in received] == offsets


async def test_what_comes_after_the_last_frame_is_not_skipped_by_a_cursor(gateway: Gateway, transport: str) -> None:
    """A position stands behind what was received, not behind what was published meanwhile."""
    async with await connect(transport, gateway.url, ANN, channels=["topic:step"]) as client:
        await client.joined()
    for step in range(30):
        await publish(gateway, "topic:step", [step])
        async with await connect(transport, gateway.url, ANN, channels=["topic:step"], cursor=client.cursor) as client:
            assert (await client.message())["data"] == step
