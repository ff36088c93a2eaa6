"""The whole of it, wired: settings, broker, node, routes. The only file that knows every other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from gateway import api
from gateway.auth import Authenticator
from gateway.brokers import open_broker
from gateway.brokers.memory import MemoryBroker
from gateway.http import exception_handlers
from gateway.metrics import Metrics
from gateway.node import Node
from gateway.settings import Settings
from gateway.tickets import spend_by
from gateway.transports import poll, sse, websocket

STATIC = Path(__file__).parent / "static"
EXPOSED = ["Ringcast-Cursor", "Ringcast-Poll-Interval", "Retry-After", "ETag"]
ALLOWED = ["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Cache-Control"]


def create_app(settings: Settings) -> Starlette:
    """One node as an ASGI application; `app.state.node` is the node. Raises ConfigError."""
    metrics = Metrics()
    auth = Authenticator(settings)
    node = Node(settings, open_broker(settings), auth, metrics)
    auth.spend = spend_by(node.broker.publish)
    _measure(metrics, node)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await node.start()
        try:
            yield
        finally:
            await node.stop()

    app = Starlette(
        routes=[
            *api.routes(node),
            WebSocketRoute("/v1/ws", websocket.endpoint),
            Route("/v1/sse", sse.endpoint, methods=["GET", "POST"]),
            Route("/v1/poll", poll.endpoint, methods=["GET", "POST"]),
            Mount("/static", StaticFiles(directory=STATIC, check_dir=False)),
        ],
        middleware=[
            Middleware(
                CORSMiddleware, allow_origins=settings.allowed_origins, allow_methods=["GET", "POST"],
                allow_headers=ALLOWED, expose_headers=EXPOSED, allow_credentials=settings.jwt_cookie is not None,
            )
        ],
        exception_handlers=exception_handlers,
        lifespan=lifespan,
    )  # fmt: skip
    app.state.node = node
    return app


def _measure(metrics: Metrics, node: Node) -> None:
    hub, settings = node.hub, node.settings
    metrics.connections = lambda: node.connections
    metrics.sessions = lambda: len(hub.sessions) - node.cluster.sessions
    metrics.lagging = lambda: sum(session.lagged for session in hub.sessions)
    metrics.subscriptions = lambda: sum(channel.subscriptions for channel in hub.channels.values())
    metrics.channels = lambda: sum(channel.subscriptions > 0 for channel in hub.channels.values())
    metrics.partitions = lambda: len(hub.partitions)
    metrics.tasks = lambda: len(asyncio.all_tasks())
    metrics.budget_used = lambda: hub.budget.used + hub.recent.bytes
    metrics.budget_limit = lambda: hub.budget.limit
    metrics.connected = lambda: node.broker.connected
    metrics.draining = lambda: node.draining
    if isinstance(node.broker, MemoryBroker):  # any other store has metrics of its own
        store = node.broker.store
        metrics.store_used = lambda: store.state.bytes
        metrics.store_limit = lambda: settings.store_bytes
        metrics.ids_used = lambda: store.state.ids.bytes
        metrics.ids_limit = lambda: settings.idempotency_bytes
