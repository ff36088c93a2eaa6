"""deploy/k8s: what is rendered keeps to Kubernetes' schemas, fits together, and says what a gateway understands."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

from gateway.config import load
from gateway.metrics import Metrics
from gateway.settings import ConfigError, Settings
from tests.support.gateway import ROOT
from tests.support.keys import API_KEY, HMAC_KEY
from tests.support.kubernetes import (
    NEWEST,
    NO_GO,
    OVERLAYS,
    Object,
    check,
    custom,
    environment,
    one,
    overlay,
    pod,
    rendered_with,
    title,
    workloads,
)

SECRETS = {
    "ringcast": {
        "RINGCAST_BROKER": "redis://redis.example.com", "RINGCAST_API_KEYS": API_KEY, "RINGCAST_JWT_HMAC_KEY": HMAC_KEY,
    },
    "ringcast-redis": {"password": "geheim"}, "ringcast-nats": {"password": "geheim"},
}  # fmt: skip
COMPONENTS = ("gateway-api", "envoy-gateway", "istio")
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason=NO_GO)


@pytest.mark.parametrize("version", NEWEST)
def test_every_object_keeps_to_its_schema(version: str) -> None:
    """Those of all overlays; what two have alike is looked at once."""
    distinct = {json.dumps(each, sort_keys=True): each for name in OVERLAYS for each in overlay(name)}
    for each in distinct.values():
        check(each, version)


def test_the_schemas_refuse_what_they_do_not_know() -> None:
    gateway = one(overlay("base"), "StatefulSet", "ringcast")
    for spoiled in ("livenesProbe", "resources"):
        container = pod(gateway)["containers"][0]
        container[spoiled] = {"limit": {"cpu": "1"}}
        with pytest.raises(ValidationError):
            check(gateway, NEWEST[-1])
        del container[spoiled]
    check(gateway, NEWEST[-1])


@needs_go
def test_the_ways_in_keep_to_the_schemas_of_their_kinds(tmp_path: Path) -> None:
    named = "".join(f"\n  - ../../components/{name}" for name in COMPONENTS)
    objects = rendered_with(tmp_path, f"resources:\n  - ../redis\ncomponents:{named}\n")
    ways = [each for each in objects if (each["apiVersion"], each["kind"]) in custom()]
    assert {each["kind"] for each in ways} == {"Gateway", "HTTPRoute", "BackendTrafficPolicy", "DestinationRule"}
    for each in ways:
        check(each, NEWEST[-1])
        each["spec"]["surprise"] = 1
        with pytest.raises(ValidationError):
            check(each, NEWEST[-1])
        del each["spec"]["surprise"]

    routes = {title(each): each for each in ways if each["kind"] == "HTTPRoute"}
    limits = {
        match["path"]["value"]: rule["timeouts"]["request"]
        for each in routes.values() for rule in each["spec"]["rules"] for match in rule["matches"]
    }  # fmt: skip
    assert limits["/v1/sse"] == limits["/v1/ws"] == limits["/v1/publish"] == "0s"
    assert float(limits["/v1/poll"].removesuffix("s")) > settings_of(objects).poll_wait
    assert "/" not in limits, "metrics and probes are for the cluster alone"
    service = one(objects, "Service", "ringcast")
    backends = [
        backend for each in routes.values() for rule in each["spec"]["rules"] for backend in rule["backendRefs"]
    ]
    assert {(backend["name"], backend["port"]) for backend in backends} == {
        (service["metadata"]["name"], service["spec"]["ports"][0]["port"])
    }
    policies = [each["spec"] for each in ways if each["kind"] == "BackendTrafficPolicy"]
    assert {f"HTTPRoute/{target['name']}" for each in policies for target in each["targetRefs"]} <= set(routes)
    for each in policies:
        assert each["loadBalancer"]["consistentHash"]["queryParams"] == [{"name": "p"}]
    [told] = [each["responseOverride"][0]["response"] for each in policies if "responseOverride" in each]
    retry, event, data = re.fullmatch(
        r"retry: (\d+)\n\nevent: (\S+)\ndata: (.*)\n\n", told["body"]["inline"]
    ).groups()  # type: ignore[union-attr]
    goodbye = json.loads(data)
    assert (event, goodbye["type"], goodbye["code"], goodbye["after_ms"]) == (
        "ringcast.goodbye", "goodbye", 4101, int(retry),
    )  # fmt: skip


def settings_of(objects: list[Object], tmp_path: Path | None = None) -> Settings:
    """The settings that a node of these would run with."""
    spec = pod(one(objects, "StatefulSet", "ringcast"))
    (container,) = spec["containers"]
    variables = environment(container, SECRETS, "ringcast-0")
    (volume,) = spec["volumes"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
    config = one(objects, "ConfigMap", volume["configMap"]["name"])["data"]
    given = tomllib.loads(config[Path(variables["RINGCAST_CONFIG"]).name])
    assert Path(variables.pop("RINGCAST_CONFIG")).parent == Path(mount["mountPath"])
    with pytest.MonkeyPatch.context() as here:
        for name, value in variables.items():
            here.setenv(name, value)
        return load(**given)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_node_understands_its_settings(name: str) -> None:
    settings = settings_of(overlay(name))
    assert settings.node == "ringcast-0"
    assert settings.broker == {
        "base": "redis://redis.example.com",
        "overlays/redis": "redis://:geheim@ringcast-redis:6379",
        "overlays/nats": "nats://ringcast:geheim@ringcast-nats:4222",
    }[name]
    assert settings.api_keys == [API_KEY]
    assert settings.jwt_hmac_key == HMAC_KEY


def test_without_its_secret_no_node_starts() -> None:
    """Not even one that would serve from its own memory, beside others that do so too."""
    (container,) = pod(one(overlay("base"), "StatefulSet", "ringcast"))["containers"]
    for key in ("RINGCAST_BROKER", "RINGCAST_API_KEYS"):
        left = {name: value for name, value in SECRETS["ringcast"].items() if name != key}
        with pytest.raises(KeyError, match=key):
            environment(container, {"ringcast": left}, "ringcast-0")


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_secret_is_in_the_repository(name: str) -> None:
    assert not [each for each in overlay(name) if each["kind"] == "Secret"]


def patience(objects: list[Object]) -> float:
    """Seconds from SIGTERM to the end of the pod above those that its node counts on, and holds its own end to."""
    spec, settings = pod(one(objects, "StatefulSet", "ringcast")), settings_of(objects)
    (container,) = spec["containers"]
    first = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    return float(spec["terminationGracePeriodSeconds"] - first - settings.grace_period)


def test_a_node_has_ended_before_its_grace_period_has() -> None:
    for name in OVERLAYS:
        assert patience(overlay(name)) >= 0
    objects = overlay("base")
    spec = pod(one(objects, "StatefulSet", "ringcast"))
    spec["containers"][0]["lifecycle"] = {"preStop": {"sleep": {"seconds": 5}}}
    assert patience(objects) < 0, "a wait before the signal counts, too"
    config = one(objects, "ConfigMap", spec["volumes"][0]["configMap"]["name"])["data"]
    config["ringcast.toml"] = config["ringcast.toml"].replace('drain = "10s"', 'drain = "60s"')
    with pytest.raises(ConfigError, match="grace_period"):
        patience(objects)


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_named_is_there(name: str) -> None:
    """Selectors find pods, Services lead to ports, volumes and accounts are those of this overlay."""
    objects = overlay(name)
    templates = [each["spec"]["template"] for each in workloads(objects)]

    def found(selector: Any) -> list[Object]:
        wanted = selector.get("matchLabels", selector).items()
        return [each["spec"] for each in templates if wanted <= each["metadata"]["labels"].items()]

    for each in objects:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "ringcast"
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            (target,) = found(spec["selector"])
            ports = {port["name"]: port["containerPort"] for one in target["containers"] for port in one["ports"]}
            for port in spec["ports"]:
                assert port["targetPort"] in ports
                if spec.get("clusterIP") == "None" or each["metadata"]["name"] != "ringcast":
                    assert port["port"] == ports[port["targetPort"]], "a headless Service translates no port"
        if each["kind"] == "StatefulSet":
            assert len(found(spec["selector"])) == 1
            one(objects, "Service", spec["serviceName"])
            one(objects, "ServiceAccount", pod(each)["serviceAccountName"])
            for volume in pod(each)["volumes"]:
                one(objects, "ConfigMap", volume["configMap"]["name"])
        if each["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            assert len(found(spec.get("selector") or spec["podSelector"])) == 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_nodes_are_reached_at_their_port_and_reach_names_and_the_store(name: str) -> None:
    policies = {title(each): each["spec"] for each in overlay(name) if each["kind"] == "NetworkPolicy"}
    store = name.rpartition("/")[2]
    node = policies.pop("NetworkPolicy/ringcast")
    assert node["ingress"] == [{"ports": [{"protocol": "TCP", "port": "http"}]}]
    [names] = node["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert names["to"]
    if name != "base":
        [way] = policies.pop(f"NetworkPolicy/ringcast-to-{store}")["egress"]
        [policy] = policies.values()
        [asked] = policy["ingress"]
        assert way["to"] == [{"podSelector": policy["podSelector"]}]
        assert asked["from"] == [{"podSelector": node["podSelector"]}]
        assert asked["ports"] == [{"protocol": "TCP", "port": store}]
        assert not policy.get("egress")
    else:
        assert not policies


def test_nodes_come_fast_and_go_slowly() -> None:
    objects = overlay("base")
    scaler, nodes = one(objects, "HorizontalPodAutoscaler", "ringcast")["spec"], one(objects, "StatefulSet", "ringcast")
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "ringcast"}
    assert "replicas" not in nodes["spec"], "applying it would undo what the autoscaler did"
    assert scaler["minReplicas"] >= 3
    slow = scaler["behavior"]["scaleDown"]
    assert slow["stabilizationWindowSeconds"] >= 600
    [step] = slow["policies"]
    assert (step["type"], step["value"]) == ("Pods", 1)
    assert step["periodSeconds"] > pod(nodes)["terminationGracePeriodSeconds"]
    assert scaler["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
    asked = {each["type"]: each for each in scaler["metrics"]}
    assert asked["Resource"]["resource"]["name"] == "cpu"
    connections = asked["Pods"]["pods"]
    assert connections["metric"]["name"] in {family.name for family in Metrics().describe()}
    most = settings_of(objects).max_connections
    assert int(connections["target"]["averageValue"]) * 3 / 2 <= most, "when one of three goes, its clients fit"


def test_the_image_is_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (container,) = pod(one(overlay("base"), "StatefulSet", "ringcast"))["containers"]
    assert container["image"] == f"ringcast:{version}"
    user = pod(one(overlay("base"), "StatefulSet", "ringcast"))["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in (ROOT / "deploy/Dockerfile").read_text()
