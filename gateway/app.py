"""The whole of it, wired: settings, broker, node, routes. The only file that knows every other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from gateway import access, api, console, jobs, verbs
from gateway.auth import Authenticator
from gateway.brokers import open_broker
from gateway.http import exception_handlers
from gateway.intake import PATH, Ahead, Intake
from gateway.measure import measure
from gateway.metrics import Metrics
from gateway.node import Node
from gateway.operators import Operators
from gateway.settings import Settings
from gateway.steward import Steward
from gateway.tickets import spend_by
from gateway.transports import poll, sse, websocket

# Seconds that a node waits for its store before it listens. Until then whoever comes is sent to another node by a
# refused connection; but one whose store stays away is to say so itself, or it would be taken for dead.
LISTEN_ANYWAY = 3.0
STATIC = Path(__file__).parent / "static"
EXPOSED = [
    "Ringcast-Cursor", "Ringcast-Poll-Interval", "Ringcast-Node", "Ringcast-Partition", "Ringcast-Home", "Retry-After",
    "ETag",
]  # fmt: skip
ALLOWED = ["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Cache-Control"]


def create_app(settings: Settings) -> Starlette:
    """One node as an ASGI application; `app.state.node` is the node. Raises ConfigError."""
    metrics = Metrics()
    auth = Authenticator(settings)
    node = Node(settings, open_broker(settings), auth, metrics)
    auth.spend = spend_by(node.broker.publish)
    operators = Operators(node.broker)
    auth.operators = operators.find
    steward = Steward(node)
    intake = Intake(node)
    measure(metrics, node)
    middleware = [Middleware(Ahead, intake=intake), Middleware(CORSMiddleware, **cors(settings))]
    access.switch(settings.access_log)
    if settings.access_log:
        middleware.insert(0, Middleware(access.AccessLog, limits=auth.limits))
    if settings.tracing:
        from gateway.tracing import Requests, Tracing  # and with it OpenTelemetry, which nobody else has to install

        middleware.insert(0, Middleware(Requests, tracer=Tracing(node).tracer))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await node.start()
        node.spawn(steward.run(), "jobs", vital=True)
        node.spawn(metrics.take_the_pulse(), "pulse", vital=True)
        await node.settle(LISTEN_ANYWAY)
        try:
            yield
        finally:
            await node.stop()

    interface: list[BaseRoute] = [
        Route(PATH, intake, methods=["POST"]),
        *api.routes(node),
        *jobs.routes(node, steward),
        *verbs.routes(node),
        WebSocketRoute("/v1/ws", websocket.endpoint),
        Route("/v1/sse", sse.endpoint, methods=["GET", "POST"]),
        Route("/v1/poll", poll.endpoint, methods=["GET", "POST"]),
    ]
    app = Starlette(
        routes=[
            *interface,
            *console.routes(node, operators, interface),
            Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
        ],
        middleware=middleware,
        exception_handlers=exception_handlers,
        lifespan=lifespan,
    )  # fmt: skip
    app.state.node = node
    return app


def cors(settings: Settings) -> dict[str, Any]:
    """What pages of other origins may do: for the middleware, and for what is answered before it."""
    return {
        "allow_origins": settings.allowed_origins, "allow_methods": ["GET", "POST"], "allow_headers": ALLOWED,
        "expose_headers": EXPOSED, "allow_credentials": settings.jwt_cookie is not None,
    }  # fmt: skip
