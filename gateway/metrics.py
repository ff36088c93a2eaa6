"""What a node counts, in Prometheus' text format.

The hot path adds to plain integers; everything else is asked for when somebody scrapes. Nothing here takes a lock:
a node's counters are written by its one event loop, and read there. What each name means is in docs/observability.md.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
PULSE = 0.1  # seconds between two looks how late the event loop is
FADES = 0.93  # what is left of an earlier lag with each look: half of it after a second

Ask = Callable[[], float]
AskEach = Callable[[], Mapping[str, float]]

# Attribute, name, help, label.
_COUNTERS = (
    ("published", "ringcast_published", "Publishes by result: stored, duplicate, or the code of the refusal", "result"),
    ("ingested", "ringcast_ingested", "Live messages that the store sent this node, whoever is here to see them", None),
    ("deliveries", "ringcast_deliveries", "Live messages offered to sessions", None),
    ("delivered_bytes", "ringcast_delivered_bytes", "Bytes written to subscribers; of a WebSocket, characters", None),
    ("replayed", "ringcast_replayed", "Messages delivered from recent messages or the store to catch up", None),
    ("resumes", "ringcast_resumes", "Positions presented, by result: recovered or reset", "result"),
    ("resets", "ringcast_resets", "Resets told, by reason", "reason"),
    ("gaps", "ringcast_gaps", "Gaps the broker told: live messages that may have been lost on their way here", None),
    ("accepts", "ringcast_accepts", "Connections and polls let in", "transport"),
    ("closes", "ringcast_closes", "Connections closed, by close code", "code"),
    ("refusals", "ringcast_refusals", "Requests refused, by the code of the problem", "code"),
    ("disconnects", "ringcast_broker_disconnects", "Connections to the store that were lost", None),
    ("losses", "ringcast_store_losses", "Partitions this node found to have lost something at a take-over", None),
)

_GAUGES = (
    ("ready", "ringcast_ready", "1 while the node should get traffic, as /readyz says", None),
    ("draining", "ringcast_draining", "1 while the node shuts down", None),
    ("drain_pace", "ringcast_drain_pace", "Clients a second that this node sends away while it shuts down", None),
    ("drain_budget", "ringcast_drain_budget", "Clients a second that the other nodes take from this one", None),
    ("connections", "ringcast_connections", "Open connections and waiting polls", "transport"),
    ("connections_limit", "ringcast_connections_limit", "Connections that the node takes at most", None),
    ("misplaced", "ringcast_misplaced_connections", "Sessions of users whose home is another node", None),
    ("sessions", "ringcast_sessions", "Sessions of the hub", None),
    ("lagging", "ringcast_lagging_sessions", "Sessions that are behind and catch up when their socket drains", None),
    ("subscriptions", "ringcast_subscriptions", "Channels of all sessions, counted once for each session", None),
    ("channels", "ringcast_channels", "Channels with a subscriber here", None),
    ("partitions", "ringcast_partitions", "Partitions this node is subscribed to: its interest", None),
    ("home_partitions", "ringcast_home_partitions", "Partitions whose home this node is", None),
    ("nodes", "ringcast_nodes", "Nodes that this one knows of, itself included", "state"),
    ("ring", "ringcast_ring_info", "1, with the hash of this node's view of the ring: the same on all nodes", "hash"),
    ("tasks", "ringcast_tasks", "Tasks of the event loop", None),
    ("budget_used", "ringcast_budget_used_bytes", "Bytes of recent messages and outboxes", None),
    ("budget_limit", "ringcast_budget_limit_bytes", "Bytes that recent messages and outboxes may have together", None),
    ("store_used", "ringcast_store_used_bytes", "Bytes of logs and keys; memory:// only", None),
    ("store_limit", "ringcast_store_limit_bytes", "Bytes that logs and keys may have; memory:// only", None),
    ("ids_used", "ringcast_idempotency_used_bytes", "Bytes of the idempotency table; warn at 80 % of the limit", None),
    ("ids_limit", "ringcast_idempotency_limit_bytes", "Bytes the idempotency table may have", None),
    ("connected", "ringcast_broker_connected", "1 while the broker's store answers", None),
    ("release", "ringcast_build_info", "1, with the release that runs", "version"),
)

_HISTOGRAMS = (
    ("publish", "ringcast_publish_seconds", "From a checked publish to the store's acknowledgement"),
    ("delivery", "ringcast_delivery_seconds", "From a message's time to the last of its sockets, by the wall clocks"),
    ("fanout", "ringcast_fanout_seconds", "From the broker's reader to the last of a message's sockets"),
    ("loop_lag", "ringcast_loop_lag_seconds", "How late the event loop comes to what is due"),
)
_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds
_EDGES = [*map(str, _BOUNDS), "+Inf"]


class Histogram:
    """Durations by size, in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * len(_EDGES)
        self.sum = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        self.counts[bisect_left(_BOUNDS, seconds)] += times
        self.sum += seconds * times


def _none() -> float:
    return 0


def _nothing() -> Mapping[str, float]:
    return {}


class Metrics(Collector):
    """One node's metrics, on a registry of their own, made once for each app.

    Counters are plain: `metrics.deliveries += n`, `metrics.resets[reason] += 1`. A gauge is asked, and so is a count
    that somebody else keeps: assign a callable that returns the number, or the numbers by label. Labels take values
    from closed sets only (codes, reasons, transports), or one at a time (a hash, a version): never a channel, a user
    or an address.
    """

    def __init__(self) -> None:
        self.published: Counter[str] = Counter()
        self.ingested = 0
        self.deliveries = 0
        self.delivered_bytes = 0
        self.replayed = 0
        self.resumes: Counter[str] = Counter()
        self.resets: Counter[str] = Counter()
        self.gaps = 0
        self.accepts: Counter[str] = Counter()
        self.closes: Counter[int] = Counter()
        self.refusals: Counter[str] = Counter()

        self.disconnects: Ask = _none
        self.losses: Ask = _none

        self.ready: Ask = _none
        self.draining: Ask = _none
        self.drain_pace: Ask = _none
        self.drain_budget: Ask = _none
        self.connections: AskEach = _nothing
        self.connections_limit: Ask = _none
        self.misplaced: Ask = _none
        self.sessions: Ask = _none
        self.lagging: Ask = _none
        self.subscriptions: Ask = _none
        self.channels: Ask = _none
        self.partitions: Ask = _none
        self.home_partitions: Ask = _none
        self.nodes: AskEach = _nothing
        self.ring: AskEach = _nothing
        self.tasks: Ask = _none
        self.budget_used: Ask = _none
        self.budget_limit: Ask = _none
        self.store_used: Ask = _none
        self.store_limit: Ask = _none
        self.ids_used: Ask = _none
        self.ids_limit: Ask = _none
        self.connected: Ask = _none
        self.release: AskEach = _nothing

        self.publish, self.delivery, self.fanout, self.loop_lag = (Histogram() for _ in _HISTOGRAMS)

        self.late = 0.0  # seconds that the event loop was late lately

        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    async def take_the_pulse(self) -> None:
        """See every PULSE how late the event loop is; ends only by cancellation."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + PULSE
            await asyncio.sleep(PULSE)
            lag = max(0.0, loop.time() - due)
            self.loop_lag.add(lag)
            self.late = max(lag, self.late * FADES)

    def exposition(self) -> bytes:
        """All metrics in the text format that `CONTENT_TYPE` names."""
        return generate_latest(self.registry)

    def describe(self) -> Iterator[Metric]:
        """Tells the registry the names without asking any gauge."""
        for _, name, help, _ in _COUNTERS:
            yield CounterMetricFamily(name, help)
        for _, name, help, _ in _GAUGES:
            yield GaugeMetricFamily(name, help)
        for _, name, help in _HISTOGRAMS:
            yield HistogramMetricFamily(name, help)

    def collect(self) -> Iterator[Metric]:
        for attribute, name, help, label in _COUNTERS:
            yield _filled(CounterMetricFamily(name, help, labels=_labels(label)), getattr(self, attribute))
        for attribute, name, help, label in _GAUGES:
            yield _filled(GaugeMetricFamily(name, help, labels=_labels(label)), getattr(self, attribute))
        for attribute, name, help in _HISTOGRAMS:
            histogram: Histogram = getattr(self, attribute)
            buckets = list(zip(_EDGES, accumulate(histogram.counts), strict=True))
            yield HistogramMetricFamily(name, help, buckets=buckets, sum_value=histogram.sum)


def _labels(label: str | None) -> list[str]:
    return [] if label is None else [label]


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, source: float | Mapping[Any, float] | Ask | AskEach
) -> CounterMetricFamily | GaugeMetricFamily:
    """The family with its one number, or with one for each value of its label."""
    found = source() if callable(source) else source
    for value, number in found.items() if isinstance(found, Mapping) else [(None, found)]:
        family.add_metric([] if value is None else [str(value)], number)
    return family
