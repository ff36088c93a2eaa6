"""`gateway.metrics`: plain counters and asked gauges become Prometheus' text."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics


def scrape(metrics: Metrics) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name, ",".join(sample.labels.values())): sample.value for sample in samples}


def test_counters_and_gauges_are_told_with_their_labels() -> None:
    metrics = Metrics()
    metrics.deliveries += 3
    metrics.published["stored"] += 2
    metrics.closes[4100] += 1
    metrics.sessions = lambda: 7
    metrics.connections = lambda: {"websocket": 5, "sse": 2}
    told = scrape(metrics)
    assert told["ringcast_deliveries_total", ""] == 3
    assert told["ringcast_published_total", "stored"] == 2
    assert told["ringcast_closes_total", "4100"] == 1
    assert told["ringcast_sessions", ""] == 7
    assert told["ringcast_connections", "websocket"] == 5
    assert told["ringcast_connections", "sse"] == 2
    assert told["ringcast_lagging_sessions", ""] == 0
    assert told["process_resident_memory_bytes", ""] > 1e6


def test_latencies_fall_into_buckets() -> None:
    metrics = Metrics()
    for seconds in (0.0001, 0.0005, 0.003, 0.003, 60.0):
        metrics.publish.add(seconds)
    told = scrape(metrics)
    assert told["ringcast_publish_seconds_bucket", "0.0005"] == 2
    assert told["ringcast_publish_seconds_bucket", "0.0025"] == 2
    assert told["ringcast_publish_seconds_bucket", "0.005"] == 4
    assert told["ringcast_publish_seconds_bucket", "5.0"] == 4
    assert told["ringcast_publish_seconds_bucket", "+Inf"] == told["ringcast_publish_seconds_count", ""] == 5
    assert math.isclose(told["ringcast_publish_seconds_sum", ""], 60.0066)


def test_two_apps_of_one_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.deliveries += 1
    assert scrape(other)["ringcast_deliveries_total", ""] == 0
