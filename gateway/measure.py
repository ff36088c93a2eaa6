"""Where the numbers of a node's metrics are found: asked for when somebody scrapes, for nothing in between."""

from __future__ import annotations

import asyncio
from collections import Counter

from gateway.brokers.memory import MemoryBroker
from gateway.cluster import release
from gateway.explain import unready
from gateway.metrics import Metrics
from gateway.node import Node


def measure(metrics: Metrics, node: Node) -> None:
    """Have the metrics ask this node."""
    hub, settings, cluster, broker = node.hub, node.settings, node.cluster, node.broker

    def subscribers() -> list[int]:
        """Of each channel that clients can have; what the gateway follows for itself is nobody's load."""
        channels = (each for partition in hub.partitions.values() for each in partition.channels.values())
        return [each.subscriptions for each in channels if not each.name.startswith("ringcast:")]

    def misplaced() -> int:
        elsewhere = (count for number, count in node.users.by_partition() if not cluster.is_home(number % partitions))
        return sum(elsewhere) if cluster.view.ring.members else 0

    partitions = settings.partitions  # a broker that keeps several chains for one counts on from here
    metrics.ready = lambda: not unready(node)
    metrics.draining = lambda: node.draining
    metrics.connections = lambda: node.admission.connections
    metrics.connections_limit = lambda: settings.max_connections
    metrics.misplaced = misplaced
    metrics.sessions = lambda: len(hub.sessions) - len(node.own)
    metrics.lagging = lambda: sum(session.lagged for session in hub.sessions)
    metrics.subscriptions = lambda: sum(subscribers())
    metrics.channels = lambda: sum(map(bool, subscribers()))
    metrics.partitions = lambda: len(hub.partitions)
    metrics.home_partitions = lambda: cluster.view.ring.shares[settings.node]
    metrics.nodes = lambda: Counter(member.state for member in cluster.view.members.values())
    metrics.ring = lambda: {cluster.view.ring.hash: 1}
    metrics.tasks = lambda: len(asyncio.all_tasks())
    metrics.budget_used = lambda: hub.budget.used + hub.recent.bytes
    metrics.budget_limit = lambda: hub.budget.limit
    metrics.connected = lambda: broker.connected
    metrics.disconnects = lambda: broker.counts.disconnects
    metrics.losses = lambda: broker.counts.losses
    metrics.ids_used = lambda: broker.ids_used()
    metrics.ids_limit = lambda: settings.idempotency_bytes
    metrics.release = lambda: {release(): 1}
    if isinstance(broker, MemoryBroker):  # any other store has metrics of its own
        store = broker.store
        metrics.store_used = lambda: store.state.bytes
        metrics.store_limit = lambda: settings.store_bytes
