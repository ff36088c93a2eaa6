"""Connections that come and go in every way leave nothing behind: no session, timer, descriptor or memory."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.publishing import publish_lines
from tests.transports.conftest import CHANNELS

ANN = token("ann", ["*"])
AT_A_TIME = 50
LONG = int(os.environ.get("CHURN", 200_000))  # 2,000,000 are what a day brings, and take an hour
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"  # a close frame, 1000
FRAMES = (b'{"type":"ping"}', b'{"type":"subscribe","channel":"deep:churn","since":"earliest"}', b"nonsense")
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    limits = {"requests_per_second": 1_000_000, "accept_rate": 1_000_000}
    return {"heartbeat": "1s", "linger": "100ms", "toml": CHANNELS, **limits}


def masked(text: bytes) -> bytes:
    assert len(text) < 126
    return bytes((0x81, 0x80 | len(text))) + b"\0\0\0\0" + text


async def visit(gateway: Gateway, chance: random.Random) -> None:
    """Connect, go as far as chance has it, and end in one of the ways there are."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    transport = writer.transport
    websocket, since = chance.random() < 0.6, chance.choice(("", "&since=earliest", "&since=5m"))
    head = f"GET /v1/{'ws' if websocket else 'sse'}?channels=deep:churn,topic:churn{since} HTTP/1.1\r\nHost: x\r\n"
    head += f"Authorization: Bearer {ANN}\r\n{UPGRADE if websocket else ''}\r\n"
    try:
        if chance.random() < 0.15:
            writer.write(head[: chance.randrange(len(head))].encode())  # in the middle of a handshake
        else:
            writer.write(head.encode())
            if chance.random() < 0.8:
                await reader.read(chance.choice((1, 200, 70_000)))  # in the middle of a replay
            if websocket and chance.random() < 0.5:
                writer.write(masked(chance.choice(FRAMES)))
            if websocket and chance.random() < 0.3:
                writer.write(CLOSE)
                while await reader.read(1 << 16):  # until the gateway has closed
                    pass
        await writer.drain()
        if chance.random() < 0.5:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            transport.abort()
    except ConnectionError:
        pass  # what was cut on purpose
    finally:
        writer.close()


async def churn(gateway: Gateway, connections: int, seed: int) -> None:
    chance, left = random.Random(seed), connections

    async def some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with asyncio.timeout(30):
                await visit(gateway, chance)

    await asyncio.gather(*(some() for _ in range(AT_A_TIME)))


def descriptors(gateway: Gateway) -> int:
    return sum(1 for _ in Path(f"/proc/{gateway.process.pid}/fd").iterdir())


@pytest.mark.parametrize(
    "connections", [pytest.param(4_000, id="short"), pytest.param(LONG, id="full", marks=pytest.mark.chaos)]
)
async def test_connections_that_come_and_go_leave_nothing_behind(gateway: Gateway, connections: int) -> None:
    """Sessions, tasks and subscriptions are looked at after each test of this folder.

    What is left is compared with what it was after the first 100,000; of fewer, after half of them.
    """
    await publish_lines(gateway, [f'{{"channel":"deep:churn","data":"{"x" * 1000}"}}' for _ in range(500)])
    before = descriptors(gateway)
    first = min(100_000, connections // 2)
    await churn(gateway, first, 1)
    await gateway.until(lambda: gateway.metric("ringcast_sessions") == 0)
    resident = gateway.resident
    await churn(gateway, connections - first, 2)
    await gateway.until(lambda: gateway.metric("ringcast_sessions") == 0)
    assert gateway.resident < 1.05 * resident
    await gateway.until(lambda: descriptors(gateway) <= before + 1, said="descriptors are left")
    assert not gateway.complaints()
