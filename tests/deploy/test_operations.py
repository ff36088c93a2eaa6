"""docs/operations.md is true: its examples render and load, and what it names is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gateway.cli import app
from gateway.metrics import Metrics
from gateway.settings import Policy, Settings
from tests.deploy.test_hardening import broken
from tests.deploy.test_kubernetes import settings_of
from tests.support.gateway import ROOT
from tests.support.kubernetes import NEWEST, NO_GO, OVERLAYS, check, one, overlay, pod, rendered_with, workloads

PAGE = (ROOT / "docs" / "operations.md").read_text()
README = (ROOT / "README.md").read_text()
# A verb's, NATS' and nginx's.
OF_OTHERS = {
    "revoke_before", "max_payload", "max_file_store", "sync_interval", "worker_rlimit_nofile", "worker_connections",
}  # fmt: skip
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason=NO_GO)


def blocks(info: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^ *```{info}\n(.*?)^ *```$", page, re.M | re.S)


@needs_go
def test_the_example_of_an_overlay_renders_to_what_a_cluster_takes(tmp_path: Path) -> None:
    (kustomization,), (settings,) = blocks("yaml kustomization"), blocks("toml settings")
    objects = rendered_with(tmp_path, kustomization, {"ringcast.toml": settings})
    for each in objects:
        check(each, NEWEST[-1])
    assert broken(objects) == set()
    assert {"PrometheusRule", "ServiceMonitor"} <= {each["kind"] for each in objects}
    (container,) = pod(one(objects, "StatefulSet", "ringcast"))["containers"]
    assert container["image"].startswith("registry.example.com/ringcast:")
    assert settings_of(objects).allowed_origins == ["https://app.example.org"]
    assert settings_of(objects).policy("room:1").presence
    assert len(one(objects, "NetworkPolicy", "ringcast")["spec"]["egress"]) == 2
    routes = [each["spec"]["hostnames"] for each in objects if each["kind"] == "HTTPRoute"]
    assert routes == [["realtime.example.org"]] * 3


def test_the_secrets_that_the_page_makes_are_those_that_are_asked_for() -> None:
    made: dict[str, set[str]] = {}
    for block in blocks("bash secrets"):
        for command in block.replace("\\\n", "").splitlines():
            words = shlex.split(command)
            if "secret" in words:
                name = words[words.index("secret") + (2 if "generic" in words else 1)]
                keys = re.findall(r'--from-literal=(\w+)=|"(\w+)": "redis', " ".join(words))
                made.setdefault(name, set()).update(first or second for first, second in keys)
    asked: dict[str, set[str]] = {}
    for objects in map(overlay, OVERLAYS):
        for workload in workloads(objects):
            for each in pod(workload)["containers"][0]["env"]:
                if wanted := each.get("valueFrom", {}).get("secretKeyRef"):
                    asked.setdefault(wanted["name"], set()).add(wanted["key"])
    assert made == asked


def test_every_alert_has_its_place_on_the_page() -> None:
    [group] = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yaml").read_text())["groups"]
    table = PAGE.partition("## What each alert means")[2]
    rows = re.findall(r"^\| (Ringcast\w+(?:, Ringcast\w+)*) \|", table, re.M)
    assert sorted(", ".join(rows).split(", ")) == sorted(rule["alert"] for rule in group["rules"])


def test_every_path_and_every_setting_that_the_page_names_is_there() -> None:
    for path in re.findall(r"(?<!\w)deploy/[\w./-]+", PAGE):
        assert (ROOT / path).exists() or path.endswith("/yours"), path
    settings = {*Settings.model_fields, *Policy.model_fields}
    for name in re.findall(r"`([a-z]+_\w+)(?: = \"[^`]*)?`", PAGE):
        assert name in settings or name.startswith("ringcast_") or name in OF_OTHERS, name
    for name in re.findall(r"`RINGCAST_(\w+)`", PAGE):
        assert name.lower() in settings, name
    counted = {family.name for family in Metrics().describe()}
    for name in re.findall(r"ringcast_\w+", PAGE):
        assert name in counted or name.removesuffix("_total") in counted, name


def test_haproxy_takes_the_names_of_nodes_that_are_not_there_yet(tmp_path: Path) -> None:
    haproxy = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    assert haproxy is not None, "haproxy is missing: install Debian's package haproxy"
    (block,) = blocks("haproxy")
    section, _, server = block.rpartition("\n\n")
    text = (ROOT / "deploy/haproxy.cfg").read_text()
    _, name, options = re.split(r"server gateway-1 (\S+) ", server.rstrip())
    for node in range(3):
        text = text.replace(f" gateway-{node + 1}:8000", f" {name.replace('-0.', f'-{node}.')} {options}")
    assert text.count(options) == 9
    (tmp_path / "haproxy.cfg").write_text(f"{section}\n\n{text}")
    result = subprocess.run([haproxy, "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr


def test_the_commands_that_the_page_names_are_there() -> None:
    for words in re.findall(r"ringcast verify ((?:--[\w-]+ \S+ )+)", PAGE):
        told = CliRunner().invoke(app, ["verify", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
        for option in re.findall(r"--[\w-]+", words):
            assert option in told


def test_the_readme_says_how_to_begin() -> None:
    (block,) = blocks("bash kubernetes", README)
    assert "kubectl apply -k deploy/k8s/overlays/redis" in block
    keys = set(re.findall(r"--from-literal=(\w+)=", block))
    assert keys == {"RINGCAST_API_KEYS", "RINGCAST_JWT_HMAC_KEY", "password"}
    assert "statefulset/ringcast" in block
