"""What a node carries, as it tells everybody who asks: totals since its start, so that two of them make a rate."""

from __future__ import annotations

import msgspec

from gateway.metrics import Metrics


class Load(msgspec.Struct, frozen=True, omit_defaults=True):
    """The members are those of `Metrics`, by their names there."""

    connections: dict[str, int] = {}  # by transport
    lagging: int = 0
    budget_used: int = 0  # bytes
    budget_limit: int = 0
    published: dict[str, int] = {}  # by result
    ingested: int = 0
    deliveries: int = 0
    delivered_bytes: int = 0
    replayed: int = 0
    gaps: int = 0
    resumes: dict[str, int] = {}  # by result
    resets: dict[str, int] = {}  # by reason
    closes: dict[int, int] = {}  # by close code
    refusals: dict[str, int] = {}  # by the code of the problem


def load_of(metrics: Metrics) -> Load:
    return Load(
        {name: int(count) for name, count in metrics.connections().items() if count}, int(metrics.lagging()),
        int(metrics.budget_used()), int(metrics.budget_limit()), dict(metrics.published), metrics.ingested,
        metrics.deliveries, metrics.delivered_bytes, metrics.replayed, metrics.gaps, dict(metrics.resumes),
        dict(metrics.resets), dict(metrics.closes), dict(metrics.refusals),
    )  # fmt: skip
