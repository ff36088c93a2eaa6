"""The heads of requests are bounded, in bytes and in time, before anybody is asked who they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.keys import API_KEY

UPGRADE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"stuck_after": "500ms"}


async def answer(gateway: Gateway, pieces: Iterator[bytes] | list[bytes], pause: float = 0.0) -> bytes:
    """All that the gateway says until it ends the connection, while `pieces` are sent, `pause` seconds apart."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)

    async def send() -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    said = bytearray()
    try:
        async with asyncio.timeout(10):
            while chunk := await reader.read(65536):
                said += chunk
    except ConnectionError:
        pass
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
    return bytes(said)


def endless(first: bytes, piece: bytes) -> Iterator[bytes]:
    yield first
    while True:
        yield piece


@pytest.mark.parametrize("size", [9_000, 60_000])
@pytest.mark.parametrize("header", [b"Authorization: Bearer ", b"Sec-WebSocket-Protocol: ringcast.v1, bearer."])
async def test_a_handshake_too_large_to_parse_is_refused_at_once(gateway: Gateway, header: bytes, size: int) -> None:
    said = await answer(gateway, [UPGRADE + header + b"x" * size + b"\r\n\r\n"])
    assert said.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"GET /livez HTTP/1.1\r\nAuthorization: Bearer ", b"x" * 1000),
        (b"GET /livez HTTP/1.1\r\n", b"X-Header: y\r\n" * 100),
        (b"GET /livez?", b"x" * 1000),
        (UPGRADE, b"X-Header: y\r\n" * 100),
    ],
)
async def test_a_head_without_end_is_cut_off(gateway: Gateway, first: bytes, piece: bytes) -> None:
    said = await answer(gateway, endless(first, piece))
    assert said.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")) or not said  # a reset may overtake the answer


@pytest.mark.parametrize(
    "pieces",
    [[], [b"GET /livez HTTP/1.1\r\n"], [UPGRADE], [b"\r\n"], [LIVEZ, b"GET /livez HTTP/1.1\r\nHost: "]],
    ids=["nothing", "a line", "half a handshake", "an empty line", "half a second request"],
)
async def test_a_head_that_does_not_arrive_is_not_waited_for(gateway: Gateway, pieces: list[bytes]) -> None:
    said = await answer(gateway, pieces, pause=0.05)
    assert said.count(b"HTTP/1.1 ") == pieces.count(LIVEZ)


async def test_a_head_that_drips_in_is_not_waited_for(gateway: Gateway) -> None:
    assert await answer(gateway, endless(b"GET /livez HTTP/1.1\r\nX-Header: ", b"y"), pause=0.05) == b""


async def test_whoever_sends_whole_heads_stays(gateway: Gateway) -> None:
    async with gateway.api(API_KEY) as http:
        for pause in (0.0, 0.8, 0.8):  # idle between two requests for longer than a head may take
            await asyncio.sleep(pause)
            response = await http.get("/v1/poll", params={"channels": "topic:a", "wait": "1", "since": "latest"})
            assert response.status_code in (200, 204)
