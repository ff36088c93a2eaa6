"""The backend of the demo's page: what an application needs beside a gateway. It issues tokens, and it publishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from publisher import AsyncPublisher, PublishError, Receipt

PAGE = Path(__file__).with_name("page")
USER = "demo"
CHANNELS = ["topic:news"]  # beside `user:demo`, which the token's `sub` brings with it
TOKEN_LASTS = 300  # seconds; the page gets a new one when the gateway says that it has expired

BURST = [
    ("order.shipped", f"user:{USER}", {"icon": "box", "title": "Order 1042", "text": "It has left the warehouse."}),
    ("comment.added", f"user:{USER}", {"icon": "chat", "title": "Ada", "text": "Looks good to me, shall we ship it?"}),
    ("build.passed", "topic:news", {"icon": "check", "title": "main", "text": "All 412 checks passed."}),
    ("payment.received", f"user:{USER}", {"icon": "coin", "title": "Invoice 77", "text": "Paid in full."}),
    ("release.published", "topic:news", {"icon": "rocket", "title": "Version 2.1", "text": "It is out."}),
]


@dataclass(frozen=True, slots=True)
class Config:
    """Where the gateway is, and the two keys that this backend shares with it."""

    gateway: str  # as the backend reaches it
    public_gateway: str  # as browsers do
    hmac_key: str  # signs the tokens of users
    api_key: str  # publishes


class Backend:
    """The endpoints below /demo. All take JSON only, so that no other site's page can make a browser call them."""

    def __init__(self, config: Config, publisher: AsyncPublisher) -> None:
        self._config = config
        self._publisher = publisher

    async def session(self, request: Request) -> Response:
        """Who the visitor is: here everybody is the user `demo`. An application would ask its own login."""
        await _body(request)
        now = time.time()
        claims = {"sub": USER, "channels": CHANNELS, "iat": int(now), "exp": int(now) + TOKEN_LASTS}
        gateway = self._config.public_gateway
        return JSONResponse({
            "token": jwt.encode(claims, self._config.hmac_key, algorithm="HS256"),
            "now": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "gateway": gateway,
            "channels": CHANNELS,
            "publishable": [f"user:{USER}", *CHANNELS],
            "curl": _curl(str(request.base_url)),
        })  # fmt: skip

    async def publish(self, request: Request) -> Response:
        """Publish what the page's form holds."""
        body = await _body(request)
        channel, event = body.get("channel"), body.get("event")
        if channel not in (f"user:{USER}", *CHANNELS) or not isinstance(event, str):
            raise HTTPException(400, f"channel must be user:{USER} or one of {', '.join(CHANNELS)}, event a string")
        return _receipts([await self._publisher.publish(channel, body.get("data"), event=event)])

    async def burst(self, request: Request) -> Response:
        """Publish a few notifications, as an application's day would bring them."""
        await _body(request)
        receipts = []
        for event, channel, data in BURST:
            receipts.append(await self._publisher.publish(channel, data, event=event))
            await asyncio.sleep(0.12)  # one after the other, for the eye
        return _receipts(receipts)


def create_app(config: Config) -> Starlette:
    """The backend as an ASGI application: the page at `/`, its endpoints below `/demo`."""
    publisher = AsyncPublisher(config.gateway, config.api_key)
    backend = Backend(config, publisher)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with publisher:
            yield

    routes = [
        Route("/demo/session", backend.session, methods=["POST"]),
        Route("/demo/publish", backend.publish, methods=["POST"]),
        Route("/demo/burst", backend.burst, methods=["POST"]),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refused, PublishError: _not_published}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


async def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise HTTPException(415, "send application/json")
    try:
        body = await request.json()
    except ValueError as error:
        raise HTTPException(400, "the body is not JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


def _receipts(receipts: list[Receipt]) -> Response:
    return JSONResponse({"receipts": [{"channel": r.channel, "offset": r.offset, "id": r.id} for r in receipts]})


def _curl(base: str) -> str:
    return (
        f"curl {base}demo/publish \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f"""  -d '{{"channel": "user:{USER}",\n       "event": "note",\n"""
        """       "data": {"text": "Hello from curl"}}'"""
    )


async def _refused(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"detail": error.detail}, error.status_code)


async def _not_published(_: Request, error: PublishError) -> Response:
    return JSONResponse({"detail": f"the gateway did not take it: {error}"}, 502)
