"""Every door of a running gateway, and how each receives whoever knocks."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.forge import ISSUER, KEY, RSA_PEM, SECRET, signed
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY

APP = "https://app.example"
# Of a gateway at which all that `forge` makes can be tried.
SETTINGS: dict[str, Any] = {
    "api_keys": [API_KEY, KEY], "jwt_hmac_key": SECRET, "jwt_public_key": RSA_PEM, "jwt_issuer": ISSUER,
    "jwt_cookie": "session", "allowed_origins": [APP], "failed_logins": 1_000_000, "heartbeat": "1s",
}  # fmt: skip
EXPOSED = {  # what pages of an allowed origin may read
    "Ringcast-Cursor", "Ringcast-Poll-Interval", "Ringcast-Node", "Ringcast-Partition", "Ringcast-Home", "Retry-After",
    "ETag",
}  # fmt: skip
DOORS = ("publish", "poll", "sse", "ws header", "ws subprotocol", "ws first frame")
Answer = tuple[int, bytes]  # HTTP status or close code, and what was said with it


async def ask(
    http: httpx.AsyncClient, path: str, headers: dict[str, str] | None = None, **query: str
) -> httpx.Response:
    """The answer to a publish, a poll that does not wait, or the beginning of a stream."""
    if path == "publish":
        body = {"channel": query.pop("channel", "topic:a"), "event": "test", "data": 1}
        return await http.post("/v1/publish", json=body, headers=headers, params=query)
    query = {"channels": "topic:a"} | query | ({"wait": "0"} if path == "poll" else {})
    async with http.stream("GET", f"/v1/{path}", headers=headers, params=query) as response:
        if response.status_code != 200 or path != "sse":
            await response.aread()
        return response


async def knock(
    gateway: Gateway, *, headers: dict[str, str] | None = None, subprotocols: list[str] | None = None,
    first: dict[str, Any] | None = None, origin: str | None = None, query: str = "channels=topic:a",
) -> Answer:  # fmt: skip
    """How a WebSocket is received: (200, its welcome), the status of a refused handshake, or the close code."""
    offered: Any = ["ringcast.v1", *(subprotocols or [])]
    try:
        async with websocket(
            f"{gateway.ws_url}/v1/ws?{query}", additional_headers=headers, subprotocols=offered, origin=origin,  # type: ignore[arg-type]
            compression=None, proxy=None, open_timeout=10,
        ) as connection:  # fmt: skip
            assert connection.subprotocol == "ringcast.v1"
            if first is not None:
                await connection.send(json.dumps(first))
            frame = str(await asyncio.wait_for(connection.recv(), 10))
            return 200, frame.encode()
    except InvalidStatus as refused:
        return refused.response.status_code, bytes(refused.response.body or b"")
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason.encode()) if closed.rcvd is not None else (0, b"cut off")


def travels(door: str, token: str) -> bool:
    """Whether a client can bring such a token to this door at all."""
    if door == "ws first frame":
        return "\ud800" not in token
    if door == "ws subprotocol":
        # RFC 9110's tokens; and the WebSocket library takes no header line above 8 KiB.
        return re.fullmatch(r"[A-Za-z0-9._~+!#$%&'*^`|-]*", token) is not None and len(token) < 8000
    return token != "" and token.isascii() and token.isprintable() and (door != "ws header" or len(token) < 8000)


async def present(gateway: Gateway, http: httpx.AsyncClient, door: str, token: str) -> Answer:
    bearer = {"Authorization": f"Bearer {token}"}
    match door:
        case "ws header":
            return await knock(gateway, headers=bearer)
        case "ws subprotocol":
            return await knock(gateway, subprotocols=[f"bearer.{token}"])
        case "ws first frame":
            return await knock(gateway, first={"type": "connect", "token": token, "channels": ["topic:a"]}, query="")
        case path:
            response = await ask(http, path, bearer)
            return response.status_code, response.content if response.status_code != 200 else b""


async def ticket(http: httpx.AsyncClient, **wanted: Any) -> str:
    bearer = {"Authorization": f"Bearer {signed(publish=['topic:*'])}"}
    response = await http.post("/v1/tickets", headers=bearer, json=wanted)
    assert response.status_code == 200, response.text
    return str(response.json()["ticket"])
