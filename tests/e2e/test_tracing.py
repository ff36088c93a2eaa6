"""A trace leads from the publisher's span through the store to the sockets of every node. Off, nothing is loaded."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette

from gateway.app import create_app
from gateway.node import Node
from gateway.settings import ConfigError, Settings
from gateway.tracing import export
from publisher import AsyncPublisher
from tests.support.clients import connect
from tests.support.collector import Collector, Span
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, HMAC_KEY, token
from tests.support.redis import RedisServer

REQUEST, STORE, DELIVER = "POST /v1/publish", "ringcast store", "ringcast deliver"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{SPAN}-01"
ANN = token("ann", ["topic:*"])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)


class App:
    """A node in this process, asked without a socket; a poll is its subscriber."""

    def __init__(self, app: Starlette) -> None:
        self.node: Node = app.state.node
        self.transport = httpx.ASGITransport(app)
        self.http = httpx.AsyncClient(
            transport=self.transport, base_url="http://gateway", headers={"Authorization": f"Bearer {API_KEY}"}
        )

    async def listens(self, channel: str) -> asyncio.Task[httpx.Response]:
        """A poll that waits for the channel's next message."""
        before = self._live(channel)
        cursor = (await self.http.get(f"/v1/poll?channels={channel}&wait=0")).json()["cursor"]
        waiting = asyncio.create_task(self.http.get(f"/v1/poll?channels={channel}&wait=20&cursor={cursor}"))
        await until(lambda: self._live(channel) > before)
        return waiting

    def _live(self, channel: str) -> int:
        at = self.node.hub.partitions.get(self.node.broker.partition(channel))
        found = None if at is None else at.channels.get(channel)
        return 0 if found is None else sum(bool(session.transport) for session in found.live)


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Of this process, whose provider can be set once."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def nodes(
    request: pytest.FixtureRequest, redis: RedisServer, exporter: InMemorySpanExporter
) -> AsyncIterator[list[App]]:
    """One node, or two on one Redis."""
    exporter.clear()
    broker, names = ("memory://", ["a"]) if request.param == "memory" else (redis.url, ["a", "b"])
    async with AsyncExitStack() as stack:
        apps = []
        for name in names:
            settings = Settings(broker=broker, node=name, api_keys=[API_KEY], jwt_hmac_key=HMAC_KEY, tracing=True)
            app = create_app(settings)
            await stack.enter_async_context(app.router.lifespan_context(app))
            apps.append(App(app))
            await stack.enter_async_context(apps[-1].http)
        await until(lambda: all(len(app.node.cluster.view.members) == len(apps) for app in apps))
        yield apps


def spans(exporter: InMemorySpanExporter, name: str) -> list[Any]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def delivered(exporter: InMemorySpanExporter, count: int) -> list[Any]:
    await until(lambda: len(spans(exporter, DELIVER)) >= count)
    return spans(exporter, DELIVER)


async def test_a_publish_is_one_trace_from_the_application_to_the_sockets(
    nodes: list[App], exporter: InMemorySpanExporter
) -> None:
    first, last = nodes[0], nodes[-1]
    polls = [await last.listens("topic:traced"), await last.listens("topic:traced")]
    if first is not last:
        polls.append(await first.listens("topic:traced"))
    async with AsyncPublisher("http://gateway", API_KEY, transport=first.transport) as publisher:
        with trace.get_tracer("app").start_as_current_span("application") as application:
            receipt = await publisher.publish("topic:traced", {"n": 1})
    for answer in await asyncio.gather(*polls):
        [message] = answer.json()["messages"]
        assert message["offset"] == receipt.offset
        assert "trace" not in message
        assert "traceparent" not in message
    ends = await delivered(exporter, len(nodes))
    [request], [store] = spans(exporter, REQUEST), spans(exporter, STORE)
    whole = application.get_span_context()
    assert {span.context.trace_id for span in (request, store, *ends)} == {whole.trace_id}
    assert request.parent.span_id == whole.span_id
    assert request.kind is trace.SpanKind.SERVER
    assert request.attributes["http.response.status_code"] == 200
    assert store.parent.span_id == request.context.span_id
    assert store.attributes["messaging.message.id"] == receipt.id
    assert store.attributes["ringcast.offset"] == receipt.offset
    assert {span.parent.span_id for span in ends} == {store.context.span_id}
    sockets = {span.attributes["ringcast.node"]: span.attributes["ringcast.sockets"] for span in ends}
    assert sockets == ({"a": 2} if first is last else {"a": 1, "b": 2})
    assert all(span.end_time >= span.start_time >= store.start_time for span in ends)


async def test_messages_of_one_request_may_have_traces_of_their_own(
    nodes: list[App], exporter: InMemorySpanExporter
) -> None:
    http = nodes[0].http
    lines = (b'{"channel":"topic:x","data":1,"traceparent":"%b"}\n{"channel":"topic:x","data":2,"traceparent":"no"}\n'
             b'{"channel":"topic:x","data":3}' % GIVEN.encode())  # fmt: skip
    answer = await http.post("/v1/publish", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert answer.text.count('"offset"') == 3
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "subject": "topic:x", "traceparent": GIVEN}
    structured = {"Content-Type": "application/cloudevents+json"}
    assert (await http.post("/v1/publish", content=msgspec.json.encode(event), headers=structured)).status_code == 200
    binary = {f"ce-{name}": value for name, value in event.items()} | {"ce-id": "2"}
    assert (await http.post("/v1/publish", json=1, headers=binary)).status_code == 200
    requests, stores = spans(exporter, REQUEST), spans(exporter, STORE)
    assert [request.parent for request in requests] == [None] * 3
    for request, store in zip([requests[0], requests[1], requests[2]], [stores[0], stores[3], stores[4]], strict=True):
        assert f"{store.context.trace_id:032x}" == TRACE
        assert f"{store.parent.span_id:016x}" == SPAN
        assert [link.context.span_id for link in store.links] == [request.context.span_id]
    for store in stores[1:3]:
        assert store.parent.span_id == requests[0].context.span_id


async def test_what_is_told_of_a_job_is_traced_as_a_publish(nodes: list[App], exporter: InMemorySpanExporter) -> None:
    body = {"state": "started", "user": "ann", "run": 1, "seq": 1}
    answer = await nodes[0].http.post("/v1/jobs/7", json=body, headers={"traceparent": GIVEN})
    assert answer.status_code == 200
    [request], [store] = spans(exporter, "POST /v1/jobs/{id}"), spans(exporter, STORE)
    assert f"{request.parent.span_id:016x}" == SPAN
    assert store.parent.span_id == request.context.span_id
    assert store.attributes["messaging.destination.name"] == "jobs:ann"


async def test_what_the_publisher_does_not_sample_is_no_ones_span(
    nodes: list[App], exporter: InMemorySpanExporter
) -> None:
    poll = await nodes[-1].listens("topic:unsampled")
    for header in (GIVEN[:-2] + "00", GIVEN[:-2] + "01"):
        body = {"channel": "topic:unsampled", "data": header}
        assert (await nodes[0].http.post("/v1/publish", json=body, headers={"traceparent": header})).status_code == 200
    assert (await poll).json()["messages"][0]["data"].endswith("00")
    [store] = spans(exporter, STORE)
    assert f"{store.context.trace_id:032x}" == TRACE


async def test_a_refused_publish_is_an_error_of_its_span(nodes: list[App], exporter: InMemorySpanExporter) -> None:
    assert (await nodes[0].http.post("/v1/publish", json={"channel": "wrong", "data": 1})).status_code == 400
    [request] = spans(exporter, REQUEST)
    assert request.attributes["http.response.status_code"] == 400
    assert not spans(exporter, STORE)


async def test_beside_a_node_of_the_first_release_messages_carry_no_trace(
    nodes: list[App], exporter: InMemorySpanExporter
) -> None:
    """It would take those for lost. The span of storing it is there all the same."""
    now = asyncio.get_running_loop().time()
    older = b'{"state":"active","partitions":1024,"release":"0.0.1"}'
    nodes[0].node.cluster.view.heard("older", older, False, now)
    polls = [await app.listens("topic:older") for app in nodes]
    body = {"channel": "topic:older", "data": 1}
    assert (await nodes[0].http.post("/v1/publish", json=body)).status_code == 200
    for poll in polls:
        assert len((await poll).json()["messages"]) == 1
    assert len(spans(exporter, STORE)) == 1
    assert not spans(exporter, DELIVER)


async def test_two_nodes_send_their_spans_by_otlp(redis: RedisServer) -> None:
    """Real processes and a real exporter; the last spans go out when they end."""
    with Collector() as collector:
        options: dict[str, Any] = {
            "broker": f"{redis.url}?prefix=otlp", "tracing": True,
            "env": {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "60000"},
        }  # fmt: skip
        with Gateway(node="a", **options) as a, Gateway(node="b", **options) as b:
            async with await connect("websocket", b.url, ANN, channels=["topic:far"]) as client, a.api() as http:
                await client.joined()
                await a.until(lambda: a.metric("ringcast_nodes") == b.metric("ringcast_nodes") == 2)
                headers = {"traceparent": GIVEN}
                answer = await http.post("/v1/publish", json={"channel": "topic:far", "data": 1}, headers=headers)
                assert answer.status_code == 200
                [message] = await client.messages(1)
                assert "trace" not in str(message)
            assert (a.stop(), b.stop()) == (0, 0)
            assert not a.complaints() + b.complaints(), a.stderr + b.stderr
    by_name: dict[str, Span] = {span.name: span for span in collector.spans}
    assert by_name.keys() == {REQUEST, STORE, DELIVER}
    assert {span.trace for span in collector.spans} == {TRACE}
    assert by_name[REQUEST].parent == SPAN
    assert by_name[STORE].parent == by_name[REQUEST].id
    assert by_name[DELIVER].parent == by_name[STORE].id
    homes = {name: span.resource["service.instance.id"] for name, span in by_name.items()}
    assert homes == {REQUEST: "a", STORE: "a", DELIVER: "b"}
    assert {span.resource["service.name"] for span in collector.spans} == {"ringcast"}


def test_a_collector_that_is_away_keeps_no_node_from_ending() -> None:
    with Gateway(tracing=True, env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) as gateway:
        gateway.publish("topic:a", 1)
        assert gateway.stop(within=10) == 0
        assert "the last spans could not be sent" in gateway.stderr
        assert not gateway.complaints(), gateway.stderr


def test_nothing_of_opentelemetry_is_loaded_while_it_is_off() -> None:
    script = (
        "import sys, gateway.server, publisher; from gateway.app import create_app\n"
        "from gateway.settings import Settings; create_app(Settings())\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "spans are sent by otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf"),
    ],
)
def test_what_cannot_be_exported_is_said_at_the_start(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=sentence):
        export(Settings())
