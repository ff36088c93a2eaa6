"""What a node counts, in Prometheus' text format.

The hot path adds to plain integers; everything else is asked for when somebody scrapes. Nothing here takes a lock:
a node's counters are written by its one event loop, and read there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

Ask = Callable[[], float]
AskEach = Callable[[], Mapping[str, float]]

_COUNTERS = (
    ("published", "ringcast_published", "Publishes by result: stored, duplicate, or the code of the refusal", "result"),
    ("deliveries", "ringcast_deliveries", "Live messages offered to sessions", None),
    ("delivered_bytes", "ringcast_delivered_bytes", "Bytes written to subscribers; of a WebSocket, characters", None),
    ("replayed", "ringcast_replayed", "Messages delivered from recent messages or the store to catch up", None),
    ("resumes", "ringcast_resumes", "Positions presented, by result: recovered or reset", "result"),
    ("resets", "ringcast_resets", "Resets told, by reason", "reason"),
    ("gaps", "ringcast_gaps", "Gaps the broker told: live messages that may have been lost on their way here", None),
    ("closes", "ringcast_closes", "Connections closed, by close code", "code"),
    ("refusals", "ringcast_refusals", "Requests refused, by the code of the problem", "code"),
)

_GAUGES = (
    ("connections", "ringcast_connections", "Open connections and waiting polls", "transport"),
    ("sessions", "ringcast_sessions", "Sessions of the hub", None),
    ("lagging", "ringcast_lagging_sessions", "Sessions that are behind and catch up when their socket drains", None),
    ("subscriptions", "ringcast_subscriptions", "Channels of all sessions, counted once for each session", None),
    ("channels", "ringcast_channels", "Channels with a subscriber here", None),
    ("partitions", "ringcast_partitions", "Partitions this node is subscribed to", None),
    ("tasks", "ringcast_tasks", "Tasks of the event loop", None),
    ("budget_used", "ringcast_budget_used_bytes", "Bytes of recent messages and outboxes", None),
    ("budget_limit", "ringcast_budget_limit_bytes", "Bytes that recent messages and outboxes may have together", None),
    ("store_used", "ringcast_store_used_bytes", "Bytes of logs and keys; memory:// only", None),
    ("store_limit", "ringcast_store_limit_bytes", "Bytes that logs and keys may have; memory:// only", None),
    ("ids_used", "ringcast_idempotency_used_bytes", "Bytes of the idempotency table; warn at 80 % of the limit", None),
    ("ids_limit", "ringcast_idempotency_limit_bytes", "Bytes the idempotency table may have", None),
    ("connected", "ringcast_broker_connected", "1 while the broker's store answers", None),
    ("draining", "ringcast_draining", "1 while the node shuts down", None),
)

_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds


def _none() -> float:
    return 0


def _nothing() -> Mapping[str, float]:
    return {}


class Metrics(Collector):
    """One node's metrics, on a registry of their own, made once for each app.

    Counters are plain: `metrics.deliveries += n`, `metrics.resets[reason] += 1`. A gauge is asked: assign a callable
    that returns the number, or for `connections` the numbers by transport. Labels take values from closed sets only
    (codes, reasons, transports): never a channel, a user or an address.
    """

    def __init__(self) -> None:
        self.published: Counter[str] = Counter()
        self.deliveries = 0
        self.delivered_bytes = 0
        self.replayed = 0
        self.resumes: Counter[str] = Counter()
        self.resets: Counter[str] = Counter()
        self.gaps = 0
        self.closes: Counter[int] = Counter()
        self.refusals: Counter[str] = Counter()

        self.connections: AskEach = _nothing
        self.sessions: Ask = _none
        self.lagging: Ask = _none
        self.subscriptions: Ask = _none
        self.channels: Ask = _none
        self.partitions: Ask = _none
        self.tasks: Ask = _none
        self.budget_used: Ask = _none
        self.budget_limit: Ask = _none
        self.store_used: Ask = _none
        self.store_limit: Ask = _none
        self.ids_used: Ask = _none
        self.ids_limit: Ask = _none
        self.connected: Ask = _none
        self.draining: Ask = _none

        self._latencies = [0] * (len(_BOUNDS) + 1)
        self._latency_sum = 0.0

        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def publish_took(self, seconds: float) -> None:
        """Count one publish's time from the checked draft to the store's acknowledgement."""
        self._latencies[bisect_left(_BOUNDS, seconds)] += 1
        self._latency_sum += seconds

    def exposition(self) -> bytes:
        """All metrics in the text format that `CONTENT_TYPE` names."""
        return generate_latest(self.registry)

    def describe(self) -> Iterator[Metric]:
        """Tells the registry the names without asking any gauge."""
        for _, name, help, _ in _COUNTERS:
            yield CounterMetricFamily(name, help)
        for _, name, help, _ in _GAUGES:
            yield GaugeMetricFamily(name, help)
        yield HistogramMetricFamily("ringcast_publish_seconds", "")

    def collect(self) -> Iterator[Metric]:
        for attribute, name, help, label in _COUNTERS:
            counted = getattr(self, attribute)
            if label is None:
                yield CounterMetricFamily(name, help, value=counted)
                continue
            counter = CounterMetricFamily(name, help, labels=[label])
            for value, number in counted.items():
                counter.add_metric([str(value)], number)
            yield counter
        for attribute, name, help, label in _GAUGES:
            found = getattr(self, attribute)()
            if label is None:
                yield GaugeMetricFamily(name, help, value=found)
                continue
            gauge = GaugeMetricFamily(name, help, labels=[label])
            for value, number in found.items():
                gauge.add_metric([value], number)
            yield gauge
        bounds = [*map(str, _BOUNDS), "+Inf"]
        yield HistogramMetricFamily(
            "ringcast_publish_seconds", "From a checked publish to the store's acknowledgement",
            buckets=list(zip(bounds, accumulate(self._latencies), strict=True)), sum_value=self._latency_sum,
        )  # fmt: skip
