"""deploy/monitoring: what it asks of Prometheus is there, each alert fires when it should, and the page explains it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import KINDS
from gateway.metrics import Metrics
from tests.support.gateway import ROOT
from tests.support.kubernetes import NEWEST, NO_GO, check, one, rendered_with
from tests.support.monitoring import PAGE, named

MONITORING = ROOT / "deploy" / "monitoring"
NO_PROMTOOL = "promtool comes with Debian's package `prometheus`: install it and this test runs"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason=NO_PROMTOOL)
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason=NO_GO)

ADDED = {"job", "instance"}  # by Prometheus, to all that it scrapes
VALUES = {
    "transport": {"websocket", "sse", "poll"}, "reason": {"trimmed", "lost", "unknown"},
    "result": {"stored", "duplicate", "recovered", "reset", *KINDS},
    "code": {*KINDS, *(str(kind.close) for kind in KINDS.values())}, "state": {"joining", "active", "draining"},
}  # fmt: skip
_SERIES = re.compile(r"\b((?:ringcast|process)_\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on) \(([^)]*)\)")


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return found


def queries() -> Iterator[str]:
    """What the dashboard's panels ask."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")


@cache
def labels_of() -> dict[str, set[str]]:
    """The labels of each series that a node can expose, by name."""
    found: dict[str, set[str]] = {"up": set()}
    for name, (kind, labels) in named().items():
        found |= {name: set(labels)} if kind != "histogram" else {
            name + "_bucket": {"le"}, name + "_sum": set(), name + "_count": set(),
        }  # fmt: skip
    for family in text_string_to_metric_families(Metrics().exposition().decode()):
        if family.name.startswith("process_"):
            found |= {sample.name: set(sample.labels) for sample in family.samples}
    return found


@pytest.mark.parametrize("query", [*(rule["expr"] for rule in rules()), *queries()])
def test_a_query_asks_for_what_is_there(query: str) -> None:
    series = _SERIES.findall(query)
    assert series
    known: set[str] = set(ADDED)
    for name, matchers in series:
        assert name in labels_of(), f"there is no {name}"
        known |= labels_of()[name]
        for label, value in _MATCHER.findall(matchers):
            assert label in labels_of()[name] | ADDED, f"{name} has no {label}"
            assert label in ADDED or set(value.split("|")) <= VALUES[label], f"{label} is never {value}"
    for grouping in _GROUPING.findall(query):
        assert {label.strip() for label in grouping.split(",") if label.strip()} <= known


def test_the_check_of_queries_finds_what_is_wrong() -> None:
    for wrong in (
        "ringcast_conections > 1", 'ringcast_connections{transport="tcp"}', 'ringcast_gaps_total{reason="lost"}',
        "sum by (channel) (ringcast_ready)", "rate(ringcast_delivery_seconds[5m])",
    ):  # fmt: skip
        with pytest.raises((AssertionError, KeyError)):
            test_a_query_asks_for_what_is_there(wrong)


def test_every_alert_is_explained_where_it_says() -> None:
    section = PAGE.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    explained = dict(re.findall(r"^### (\w+)\n\n(.+?)(?=\n###|\Z)", section, re.M | re.S))
    assert list(explained) == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/observability.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert len(explained[rule["alert"]]) > 100, "it says too little"


def test_the_operators_rules_are_the_same() -> None:
    theirs = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    assert theirs["spec"] == yaml.safe_load((MONITORING / "alerts.yaml").read_text())


@needs_go
def test_the_objects_keep_to_their_schemas_and_fit_the_services(tmp_path: Path) -> None:
    kustomization = "resources:\n  - ../redis\ncomponents:\n  - ../../../monitoring\n"
    objects = rendered_with(tmp_path, kustomization)
    rule, monitor = one(objects, "PrometheusRule", "ringcast"), one(objects, "ServiceMonitor", "ringcast")
    for each in (rule, monitor):
        check(each, NEWEST[-1])
        assert each["metadata"]["namespace"] == "ringcast"
    [endpoint] = monitor["spec"]["endpoints"]
    [kept] = [each["regex"] for each in endpoint["relabelings"] if each.get("action") == "keep"]
    service = one(objects, "Service", kept)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_the_panels_of_the_dashboard_stand_beside_each_other() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not taken & cells, panel["title"]
        taken |= cells
    asked = [panel["datasource"]["uid"] for panel in panels if "targets" in panel]
    assert set(asked) == {"${datasource}"}


@needs_promtool
def test_prometheus_can_parse_every_query(tmp_path: Path) -> None:
    recorded = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries())]
    panels = tmp_path / "panels.yaml"
    panels.write_text(json.dumps({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", MONITORING / "alerts.yaml", panels)


# ---------------------------------------------------------------- when they fire

# Two nodes that are well, a sample a minute; and what makes each alert fire, and none beside it.
HEALTHY = {
    'up{job="ringcast",instance="I"}': "1x150",
    'ringcast_ready{job="ringcast",instance="I"}': "1x150",
    'ringcast_draining{job="ringcast",instance="I"}': "0x150",
    'ringcast_broker_connected{job="ringcast",instance="I"}': "1x150",
    'ringcast_broker_disconnects_total{job="ringcast",instance="I"}': "1x150",
    'ringcast_store_losses_total{job="ringcast",instance="I"}': "3x150",
    'ringcast_gaps_total{job="ringcast",instance="I"}': "0x140 1x10",
    'ringcast_resets_total{job="ringcast",instance="I",reason="trimmed"}': "0+6x150",
    'ringcast_resumes_total{job="ringcast",instance="I",result="recovered"}': "0+600x150",
    'ringcast_published_total{job="ringcast",instance="I",result="stored"}': "0+6000x150",
    'ringcast_published_total{job="ringcast",instance="I",result="unavailable"}': "7x150",
    'ringcast_delivery_seconds_bucket{job="ringcast",instance="I",le="0.005"}': "0+1000x150",
    'ringcast_delivery_seconds_bucket{job="ringcast",instance="I",le="1.0"}': "0+1001x150",
    'ringcast_delivery_seconds_bucket{job="ringcast",instance="I",le="+Inf"}': "0+1001x150",
    'ringcast_loop_lag_seconds_bucket{job="ringcast",instance="I",le="0.001"}': "0+600x150",
    'ringcast_loop_lag_seconds_bucket{job="ringcast",instance="I",le="1.0"}': "0+600x150",
    'ringcast_loop_lag_seconds_bucket{job="ringcast",instance="I",le="+Inf"}': "0+600x150",
    'ringcast_connections{job="ringcast",instance="I",transport="websocket"}': "9000x150",
    'ringcast_connections{job="ringcast",instance="I",transport="sse"}': "1000x150",
    'ringcast_connections_limit{job="ringcast",instance="I"}': "18000x150",
    'ringcast_refusals_total{job="ringcast",instance="I",code="busy"}': "100x150",
    'process_open_fds{job="ringcast",instance="I"}': "10100x150",
    'process_max_fds{job="ringcast",instance="I"}': "20000x150",
    'ringcast_budget_used_bytes{job="ringcast",instance="I"}': "70000000x150",
    'ringcast_budget_limit_bytes{job="ringcast",instance="I"}': "268435456x150",
    'ringcast_lagging_sessions{job="ringcast",instance="I"}': "3x150",
    'ringcast_sessions{job="ringcast",instance="I"}': "10000x150",
    'ringcast_idempotency_used_bytes{job="ringcast",instance="I"}': "1000000x150",
    'ringcast_idempotency_limit_bytes{job="ringcast",instance="I"}': "67108864x150",
    'ringcast_store_used_bytes{job="ringcast",instance="I"}': "0x150",
    'ringcast_store_limit_bytes{job="ringcast",instance="I"}': "0x150",
    'ringcast_ring_info{job="ringcast",instance="I",hash="1"}': "1x150",
    'ringcast_misplaced_connections{job="ringcast",instance="I"}': "1000x150",
    'ringcast_drain_pace{job="ringcast",instance="I"}': "0x150",
    'ringcast_drain_budget{job="ringcast",instance="I"}': "0x150",
    'ringcast_build_info{job="ringcast",instance="I",version="1"}': "1x150",
}  # fmt: skip
FAULTS: dict[str, dict[str, str | None]] = {
    "RingcastNodeDown": {"up{": "0x150"},
    "RingcastNotReady": {"ringcast_ready{": "0x150"},
    "RingcastStoreAway": {"ringcast_broker_connected{": "0x150"},
    "RingcastStoreUnsteady": {"ringcast_broker_disconnects_total{": "0+1x150"},
    "RingcastStoreLost": {"ringcast_store_losses_total{": "3x125 8x25"},
    "RingcastGaps": {"ringcast_gaps_total{": "0+10x150"},
    "RingcastResets": {"ringcast_resets_total{": "0+60x150"},
    "RingcastPublishesFail": {'result="unavailable"}': "0+60x150"},
    "RingcastDeliverySlow": {'delivery_seconds_bucket{job="ringcast",instance="I",le="0.005"}': "0+500x150"},
    "RingcastLoopLate": {'lag_seconds_bucket{job="ringcast",instance="I",le="0.001"}': "0+500x150"},
    "RingcastNearlyFull": {'transport="websocket"}': "15000x150"},
    "RingcastTurnsAway": {"ringcast_refusals_total{": "0+120x150"},
    "RingcastFilesNearlyUsed": {"process_max_fds{": "11000x150"},
    "RingcastBudgetNearlyUsed": {"ringcast_budget_used_bytes{": "240000000x150"},
    "RingcastManyLagging": {"ringcast_lagging_sessions{": "2000x150"},
    "RingcastIdempotencyNearlyFull": {"ringcast_idempotency_used_bytes{": "60000000x150"},
    "RingcastMemoryStoreNearlyFull": {
        "ringcast_store_used_bytes{": "260000000x150", "ringcast_store_limit_bytes{": "268435456x150",
    },
    "RingcastViewsDiffer": {"ringcast_ring_info{": None},
    "RingcastMisplaced": {"ringcast_misplaced_connections{": "19000x150"},
    "RingcastDrainTooShort": {"ringcast_drain_pace{": "900x150", "ringcast_drain_budget{": "500x150"},
    "RingcastReleasesDiffer": {"ringcast_build_info{": None},
}  # fmt: skip
ASKED_AT = "130m"


def series(fault: dict[str, str | None]) -> list[dict[str, str]]:
    """The samples of two nodes, the first of which has the fault; None: it says something else than the second."""
    found = []
    for name, values in HEALTHY.items():
        [told] = [value for part, value in fault.items() if part in name] or [values]
        other = name if told else re.sub(r'(hash|version)="1"', r'\1="2"', name)
        found.append({"series": other.replace('"I"', '"a"'), "values": told or values})
        found.append({"series": name.replace('"I"', '"b"'), "values": values})
    return found


def scenario(fault: dict[str, str | None], *firing: str) -> dict[str, Any]:
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing]
    asked = {
        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": ASKED_AT,
        "exp_samples": samples,
    }
    return {"interval": "1m", "input_series": series(fault), "promql_expr_test": [asked]}


@needs_promtool
def test_each_alert_fires_when_it_should_and_no_other(tmp_path: Path) -> None:
    assert list(FAULTS) == [rule["alert"] for rule in rules()]
    tests = [scenario({}), *(scenario(fault, name) for name, fault in FAULTS.items())]
    path = tmp_path / "tests.yaml"
    path.write_text(json.dumps({
        "rule_files": [str(MONITORING / "alerts.yaml")], "evaluation_interval": "5m", "tests": tests,
    }))  # fmt: skip
    promtool("test", "rules", path)
    spoiled = tests[1] | {"input_series": series({})}  # a node is said to be down, and is not
    path.write_text(json.dumps({"rule_files": [str(MONITORING / "alerts.yaml")], "tests": [spoiled]}))
    with pytest.raises(AssertionError, match="RingcastNodeDown"):
        promtool("test", "rules", path)


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
