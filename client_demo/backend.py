"""The backend of the demo's page, which is what an application has: it issues tokens, publishes, and starts jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
from celery import group
from kombu.exceptions import OperationalError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from client_demo.processes import Node
from client_demo.queue import celery_at
from publisher import AsyncPublisher, PublishError, Receipt
from publisher.celery import report, whole
from publisher.jobs import JobReporter
from publisher.message import new_id

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

COURSES: dict[str, dict[str, Any]] = {  # how a report may go, and what its worker is told
    "works": {}, "retries": {"away": 1}, "fails": {"figures": False}, "gives-up": {"away": 3},
}  # fmt: skip
IMAGES = {"harbour.jpg": 24, "bridge.jpg": 12, "market.jpg": 18, "lighthouse.jpg": 8, "ferry.jpg": 14}  # megapixels


@dataclass(frozen=True, slots=True)
class Config:
    """Where the gateway is, and the two keys that this backend shares with it."""

    gateway: str  # as the backend reaches it
    public_gateway: str  # as browsers do
    hmac_key: str  # signs the tokens of users
    api_key: str  # publishes
    queue: str  # where jobs wait for a worker: a folder, or a Redis by its URL


class Backend:
    """The endpoints below /demo. All take JSON only, so that no other site's page can make a browser call them."""

    def __init__(self, config: Config, publisher: AsyncPublisher, nodes: Sequence[Node]) -> None:
        self._config = config
        self._publisher = publisher
        self._nodes = nodes
        self._celery = celery_at(config.queue)

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
            "jobs": f"jobs:{USER}",
            "publishable": [f"user:{USER}", *CHANNELS],
            "curl": _curl(str(request.base_url)),
            "cluster": bool(self._nodes),
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

    async def start(self, request: Request) -> Response:
        """Hand a job to its queue, and answer with its id: nobody waits for the gateway, nor for the job."""
        body = await _body(request)
        kind, course = body.get("kind"), body.get("course", "works")
        if kind == "report" and course in COURSES:
            job = new_id()
            await asyncio.to_thread(
                self._celery.send_task, "report", kwargs=COURSES[course], task_id=job, headers={"ringcast_user": USER}
            )
        elif kind == "images":
            job = new_id()
            await asyncio.to_thread(self._send_images, job)
        else:
            raise HTTPException(400, f"kind must be report or images, course one of {', '.join(COURSES)}")
        return JSONResponse({"job": job}, 202)

    def _send_images(self, job: str) -> None:
        """A group of tasks, the larger images with more weight in its progress."""
        parts = [
            self._celery.signature(
                "image", kwargs={"name": name, "megapixels": size}, task_id=part,
                headers={"ringcast_user": USER, "ringcast_weight": size},
            )
            for part, (name, size) in zip(_parts(job), IMAGES.items(), strict=True)
        ]  # fmt: skip
        whole(group(parts, app=self._celery).apply_async(task_id=job), user=USER, name="images")

    async def cancel(self, request: Request) -> Response:
        """End a job, or keep it from beginning. An application would ask whose it is: here all are the demo's."""
        job = (await _body(request)).get("job")
        if not isinstance(job, str):
            raise HTTPException(400, "job must be a job's id")
        # SIGUSR1 interrupts a task and leaves its process; one that SIGTERM ends may take a lock of its pool with it.
        revoke = self._celery.control.revoke
        await asyncio.to_thread(revoke, [job, *_parts(job)], terminate=True, signal="SIGUSR1")
        return JSONResponse({"job": job}, 202)

    async def nodes(self, request: Request) -> Response:
        """The cluster's nodes, for the page to show."""
        await _body(request)
        return JSONResponse({
            "nodes": [{"name": node.name, "pid": node.pid, "url": node.url, "up": node.up} for node in self._nodes]
        })  # fmt: skip

    async def kill(self, request: Request) -> Response:
        """Kill a node, as no application would offer it to its visitors, and publish what they will have missed."""
        name = (await _body(request)).get("node")
        found = [node for node in self._nodes if node.name == name]
        if not found:
            raise HTTPException(404, "there is no such node")
        found[0].kill()
        sent = [await self._publisher.publish(channel, data, event=event) for event, channel, data in BURST]
        return _receipts(sent)


def create_app(config: Config, nodes: Sequence[Node] = ()) -> Starlette:
    """The backend as an ASGI application: the page at `/`, its endpoints below `/demo`; `nodes` if it is a cluster."""
    publisher = AsyncPublisher(config.gateway, config.api_key)
    reporter = report(JobReporter(config.gateway, config.api_key))  # every task that is sent is told of
    backend = Backend(config, publisher, nodes)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with publisher, reporter:
            yield

    routes = [
        Route("/demo/session", backend.session, methods=["POST"]),
        Route("/demo/publish", backend.publish, methods=["POST"]),
        Route("/demo/burst", backend.burst, methods=["POST"]),
        Route("/demo/jobs", backend.start, methods=["POST"]),
        Route("/demo/jobs/cancel", backend.cancel, methods=["POST"]),
        Route("/demo/nodes", backend.nodes, methods=["POST"]),
        Route("/demo/kill", backend.kill, methods=["POST"]),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refused, PublishError: _not_published, OperationalError: _not_queued}
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


def _parts(job: str) -> list[str]:
    return [f"{job}-{n}" for n in range(1, len(IMAGES) + 1)]


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


async def _not_queued(_: Request, error: OperationalError) -> Response:
    return JSONResponse({"detail": f"the queue did not take it: {error}"}, 503)
