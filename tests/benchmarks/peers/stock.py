"""A gateway as one is written on stock uvicorn and Starlette: PyJWT, a queue and a task for each subscriber.

python stock.py PORT [HMAC_KEY]    with a key, subscribers present a token of HS256

`/v1/sse` is sse-starlette's. `/empty` takes a body and does nothing with it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import jwt
import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

KEY = sys.argv[2] if len(sys.argv) > 2 else None
channels: dict[str, set[asyncio.Queue[str]]] = {}


def wanted(connection: HTTPConnection) -> list[str]:
    """The channels asked for, and those of the token's user."""
    named = connection.query_params.get("channels", "")
    found = named.split(",") if named else []
    if KEY is not None:
        claims = jwt.decode(connection.headers["authorization"].removeprefix("Bearer "), KEY, algorithms=["HS256"])
        found += [f"user:{claims['sub']}", f"jobs:{claims['sub']}"]
    return found


@asynccontextmanager
async def queue_of(names: list[str]) -> AsyncIterator[asyncio.Queue[str]]:
    queue: asyncio.Queue[str] = asyncio.Queue(1000)
    for name in names:
        channels.setdefault(name, set()).add(queue)
    try:
        yield queue
    finally:
        for name in names:
            channels[name].discard(queue)
            if not channels[name]:
                del channels[name]


async def websocket(socket: WebSocket) -> None:
    names = wanted(socket)
    await socket.accept()
    async with queue_of(names) as queue:
        await socket.send_text(json.dumps({"type": "welcome", "channels": names}))

        async def write() -> None:
            while True:
                await socket.send_text(await queue.get())

        writing = asyncio.create_task(write())
        try:
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass
        finally:
            writing.cancel()


async def sse(request: Request) -> EventSourceResponse:
    names = wanted(request)

    async def events() -> AsyncIterator[ServerSentEvent]:
        async with queue_of(names) as queue:
            yield ServerSentEvent(comment="hello")
            while True:
                yield ServerSentEvent(await queue.get(), event="bench")

    return EventSourceResponse(events())


async def publish(request: Request) -> Response:
    for line in (await request.body()).splitlines():
        message = json.loads(line)
        text = json.dumps({"type": "message", "event": "bench", **message}, separators=(",", ":"))
        for queue in channels.get(message["channel"], ()):
            queue.put_nowait(text)
    return Response(b"{}")


async def empty(request: Request) -> Response:
    await request.body()
    return Response(b"{}")


routes = [
    WebSocketRoute("/v1/ws", websocket), Route("/v1/sse", sse), Route("/v1/publish", publish, methods=["POST"]),
    Route("/empty", empty, methods=["POST"]),
]  # fmt: skip

if __name__ == "__main__":
    app = Starlette(routes=routes)
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", ws_ping_interval=15, ws_ping_timeout=60,
                ws_per_message_deflate=False, backlog=4096, timeout_keep_alive=600, access_log=False)  # fmt: skip
