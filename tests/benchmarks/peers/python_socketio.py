"""A gateway on python-socketio and uvicorn: a room for each channel.

python python_socketio.py PORT
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import parse_qs

import socketio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

server = socketio.AsyncServer(async_mode="asgi", transports=["websocket"], ping_interval=15)


async def connect(sid: str, environ: dict[str, Any]) -> None:
    await server.enter_room(sid, parse_qs(environ["QUERY_STRING"])["channels"][0])


server.on("connect", connect)


async def publish(request: Request) -> Response:
    for line in (await request.body()).splitlines():
        message = json.loads(line)
        await server.emit("bench", message["data"], room=message["channel"])
    return Response(b"{}")


if __name__ == "__main__":
    app = socketio.ASGIApp(server, Starlette(routes=[Route("/v1/publish", publish, methods=["POST"])]))
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", ws_ping_interval=None, ws_per_message_deflate=False,
                backlog=4096, timeout_keep_alive=600)  # fmt: skip
