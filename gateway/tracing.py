"""Traces of messages by OpenTelemetry: from the publisher's span through the store to the sockets of every node.

Three kinds of spans. A request (server) is what publishes over HTTP; its parent is the publisher's. `ringcast store`
(producer) is one message on its way into the store, the child of its request or, where the message names a trace of
its own, of that and linked to its request. `ringcast deliver` (consumer) is that message at one node, however many
sockets it goes to there: it begins where the store's announcement has come and ends when they have been written to.
What is replayed to somebody who comes back has no span.

Only `app` and `server` import this file, and only where `tracing` is on: else nothing of OpenTelemetry is loaded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.brokers.base import Receipt
from gateway.cluster import release
from gateway.message import Draft
from gateway.message import Message as Stored
from gateway.node import Node
from gateway.recent import Channel
from gateway.settings import ConfigError, Settings
from gateway.traceparent import check_traceparent

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ModuleNotFoundError:
    raise ConfigError("tracing: this needs OpenTelemetry: pip install 'ringcast[otel]', or leave it off") from None

log = logging.getLogger("ringcast.tracing")

LAST_SPANS = 3.0  # seconds that a process which ends has for sending them
_PUBLISHING = ("/v1/publish", "/v1/jobs/")


class Tracing:
    """The spans of one node, by the tracer provider of the process."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._scheme = node.settings.broker.partition(":")[0]
        self.tracer = trace.get_tracer("ringcast", release())
        node.store = self._store
        node.hub.traced = self._delivered

    async def _store(self, draft: Draft) -> Receipt:
        """Publish, in a span of its own where something is traced: the request, or the message."""
        node, request = self._node, trace.get_current_span().get_span_context()
        if draft.trace is None and not request.is_valid:
            return await node.broker.publish(draft)
        parent, links = None, []
        if draft.trace is not None:
            parent = _context(draft.trace)
            links = [trace.Link(request)] if request.is_valid else []
        about = {**_about(draft.channel, draft.id, "send"), "ringcast.broker": self._scheme}
        with self.tracer.start_as_current_span(
            "ringcast store", context=parent, kind=trace.SpanKind.PRODUCER, attributes=about, links=links
        ) as span:
            context = span.get_span_context()
            draft.trace = _traceparent(context) if context.trace_flags.sampled and node.cluster.traced else None
            receipt = await node.broker.publish(draft)
            span.set_attributes({"ringcast.offset": receipt.offset, "ringcast.duplicate": receipt.duplicate})
            return receipt

    def _delivered(self, message: Stored, channel: Channel) -> None:
        """The message has been offered to its sessions, which are written to in this turn of the loop."""
        sockets = sum(1 for session in channel.live if session.transport)
        traceparent = check_traceparent(message.trace)
        if not sockets or traceparent is None:
            return
        about = _about(message.channel, message.id, "process") | {
            "ringcast.offset": message.offset, "ringcast.sockets": sockets, "ringcast.node": self._node.settings.node,
        }  # fmt: skip
        span = self.tracer.start_span(
            "ringcast deliver", context=_context(traceparent), kind=trace.SpanKind.CONSUMER, attributes=about
        )  # fmt: skip
        # Behind the writes, which were put off until now, too. A fan-out of more than a slice goes on a little longer.
        asyncio.get_running_loop().call_soon(span.end)


class Requests:
    """ASGI middleware: a span for each request that publishes, the child of the one that its `traceparent` names."""

    def __init__(self, app: ASGIApp, tracer: Any) -> None:
        self._app, self._tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" and scope["method"] == "POST" else ""
        if not path.startswith(_PUBLISHING):
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"traceparent"]
        parent = check_traceparent(given[0].decode("latin-1")) if len(given) == 1 else None
        route = "/v1/publish" if path == "/v1/publish" else "/v1/jobs/{id}"
        with self._tracer.start_as_current_span(
            f"POST {route}", context=None if parent is None else _context(parent), kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": "POST", "http.route": route, "url.path": path},
        ) as span:  # fmt: skip

            async def sent(event: Message) -> None:
                if event["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", event["status"])
                    if event["status"] >= 500:
                        span.set_status(trace.StatusCode.ERROR)
                await send(event)

            await self._app(scope, receive, sent)


def export(settings: Settings) -> TracerProvider:
    """Have this process send its spans by OTLP over HTTP, where and how OTEL_* variables say. Raises ConfigError."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if exporter not in ("otlp", "none"):
        raise ConfigError(f"tracing: OTEL_TRACES_EXPORTER is {exporter!r}: spans are sent by otlp, or by none")
    if protocol not in (None, "http/protobuf"):
        raise ConfigError(f"tracing: the protocol {protocol!r} is not spoken here: set OTEL_EXPORTER_OTLP_PROTOCOL to"
                          " http/protobuf")  # fmt: skip
    own = {"service.instance.id": settings.node}
    if "OTEL_SERVICE_NAME" not in os.environ and "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        own["service.name"] = "ringcast"
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    if exporter == "otlp":
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def flush(provider: TracerProvider) -> None:
    """Send what is left, if the collector takes it in time: a node that ends waits for it no longer."""
    sending = threading.Thread(target=provider.shutdown, daemon=True)  # it would try for longer than we have
    sending.start()
    sending.join(LAST_SPANS)
    if sending.is_alive():
        log.warning("the last spans could not be sent within %g s", LAST_SPANS)


def _context(traceparent: str) -> Any:
    """The context in which the span that a `traceparent` names is the current one."""
    _, trace_id, span_id, flags = traceparent.split("-")
    span = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(trace.NonRecordingSpan(span))


def _traceparent(context: Any) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"


def _about(channel: str, id: str, operation: str) -> dict[str, Any]:
    """What OpenTelemetry's conventions for messaging call these."""
    return {
        "messaging.system": "ringcast", "messaging.operation.type": operation, "messaging.destination.name": channel,
        "messaging.message.id": id,
    }  # fmt: skip
