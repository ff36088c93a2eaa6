"""What every pod of deploy/k8s is held to; each rule is shown to notice the day when a manifest no longer keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.kubernetes import OVERLAYS, Object, one, overlay, pod, title, workloads

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def _each(workload: Object) -> list[Object]:
    spec = pod(workload)
    return [*spec["containers"], *spec.get("initContainers", [])]


def _security(workload: Object, field: str) -> list[Any]:
    """A field of every container's security context; where it has none, the pod's."""
    of_pod = pod(workload).get("securityContext", {})
    return [each.get("securityContext", {}).get(field, of_pod.get(field)) for each in _each(workload)]


def _not_root(workload: Object, _: list[Object]) -> bool:
    users = _security(workload, "runAsUser")
    return all(_security(workload, "runAsNonRoot")) and all(user is not None and user > 0 for user in users)


def _token(workload: Object, objects: list[Object]) -> bool:
    spec = pod(workload)
    account = one(objects, "ServiceAccount", spec["serviceAccountName"])
    return spec.get("automountServiceAccountToken") is False and account.get("automountServiceAccountToken") is False


def _limited(workload: Object, _: list[Object]) -> bool:
    parts = [each.get("resources", {}).get(part, {}) for each in _each(workload) for part in ("requests", "limits")]
    return all({"cpu", "memory"} <= set(part) for part in parts)


def _on_the_host(workload: Object, _: list[Object]) -> bool:
    spec = pod(workload)
    shared = any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
    paths = any("hostPath" in volume for volume in spec.get("volumes", []))
    return not (shared or paths or any(_security(workload, "privileged")))


def _scaled(workload: Object, objects: list[Object]) -> bool:
    """Whether there are, or may be, several of it."""
    targets = [each["spec"]["scaleTargetRef"]["name"] for each in objects if each["kind"] == "HorizontalPodAutoscaler"]
    return workload["metadata"]["name"] in targets or workload["spec"].get("replicas", 1) > 1


def _disrupted(workload: Object, objects: list[Object]) -> bool:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    budgets = [each["spec"] for each in objects if each["kind"] == "PodDisruptionBudget"]
    held = [budget for budget in budgets if budget["selector"]["matchLabels"].items() <= labels.items()]
    return not _scaled(workload, objects) or [budget.get("maxUnavailable") for budget in held] == [1]


def _spread(workload: Object, objects: list[Object]) -> bool:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    constraints = pod(workload).get("topologySpreadConstraints", [])
    ours = [each for each in constraints if each["labelSelector"]["matchLabels"].items() <= labels.items()]
    wanted = {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    return not _scaled(workload, objects) or {each["topologyKey"] for each in ours} >= wanted


def _fenced(workload: Object, objects: list[Object]) -> bool:
    """A NetworkPolicy governs what comes in and what goes out."""
    labels = workload["spec"]["template"]["metadata"]["labels"]
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    ours = [each for each in policies if each["podSelector"]["matchLabels"].items() <= labels.items()]
    return {way for each in ours for way in each["policyTypes"]} == {"Ingress", "Egress"}


def _enforced(_: Object, objects: list[Object]) -> bool:
    labels = one(objects, "Namespace", "ringcast")["metadata"]["labels"]
    return bool(labels.get("pod-security.kubernetes.io/enforce") == "restricted")


RULES: dict[str, Callable[[Object, list[Object]], bool]] = {
    "runs as somebody else than root": _not_root,
    "cannot write into its image": lambda w, _: all(_security(w, "readOnlyRootFilesystem")),
    "cannot gain privileges": lambda w, _: all(v is False for v in _security(w, "allowPrivilegeEscalation")),
    "has no capabilities": lambda w, _: all(v == {"drop": ["ALL"]} for v in _security(w, "capabilities")),
    "has few system calls": lambda w, _: all(v == {"type": "RuntimeDefault"} for v in _security(w, "seccompProfile")),
    "shares nothing with its host": _on_the_host,
    "has no token": _token,
    "asks for what it needs and has a limit": _limited,
    "is probed in three ways": lambda w, _: all(probe in each for each in _each(w) for probe in PROBES),
    "takes no variables from Services": lambda w, _: pod(w).get("enableServiceLinks") is False,
    "is taken away one at a time": _disrupted,
    "is spread over machines and zones": _spread,
    "is fenced in": _fenced,
    "is in a namespace that enforces it": _enforced,
    "names its image's version": lambda w, _: all(
        ":" in each["image"] and not each["image"].endswith(":latest") for each in _each(w)
    ),
}


def broken(objects: list[Object]) -> set[tuple[str, str]]:
    """The workloads and the rules that they break."""
    found = workloads(objects)
    return {(title(each), rule) for each in found for rule, keeps in RULES.items() if not keeps(each, objects)}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_keeps_every_rule(name: str) -> None:
    objects = overlay(name)
    assert len(workloads(objects)) == (1 if name == "base" else 2)
    assert broken(objects) == set()


def _set(path: str, value: Any) -> Callable[[Object, list[Object]], None]:
    """A mutation that sets a field below a pod's spec; None takes it away. `0` is a list's first entry."""

    def mutate(workload: Object, _: list[Object]) -> None:
        where: Any = pod(workload)
        *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in above:
            where = where[part]
        if value is None:
            del where[last]
        else:
            where[last] = value

    return mutate


def _without(kind: str) -> Callable[[Object, list[Object]], None]:
    return lambda _, objects: objects.__setitem__(slice(None), [each for each in objects if each["kind"] != kind])


def _unlabelled(_: Object, objects: list[Object]) -> None:
    del one(objects, "Namespace", "ringcast")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]


def _outwards(_: Object, objects: list[Object]) -> None:
    for each in objects:
        if each["kind"] == "NetworkPolicy":
            each["spec"]["policyTypes"] = ["Ingress"]


def _account(_: Object, objects: list[Object]) -> None:
    del one(objects, "ServiceAccount", "ringcast")["automountServiceAccountToken"]


MUTATIONS: list[tuple[str, Callable[[Object, list[Object]], None]]] = [
    ("runs as somebody else than root", _set("securityContext.runAsNonRoot", None)),
    ("runs as somebody else than root", _set("securityContext.runAsUser", None)),
    ("runs as somebody else than root", _set("containers.0.securityContext.runAsUser", 0)),
    ("cannot write into its image", _set("containers.0.securityContext.readOnlyRootFilesystem", None)),
    ("cannot gain privileges", _set("containers.0.securityContext.allowPrivilegeEscalation", None)),
    ("has no capabilities", _set("containers.0.securityContext.capabilities", None)),
    ("has no capabilities", _set("containers.0.securityContext.capabilities.add", ["NET_ADMIN"])),
    ("has few system calls", _set("securityContext.seccompProfile", None)),
    ("has few system calls", _set("containers.0.securityContext.seccompProfile", {"type": "Unconfined"})),
    ("shares nothing with its host", _set("hostNetwork", True)),
    ("shares nothing with its host", _set("containers.0.securityContext.privileged", True)),
    ("shares nothing with its host", _set("volumes.0", {"name": "config", "hostPath": {"path": "/etc"}})),
    ("has no token", _set("automountServiceAccountToken", None)),
    ("has no token", _account),
    ("asks for what it needs and has a limit", _set("containers.0.resources.requests.cpu", None)),
    ("asks for what it needs and has a limit", _set("containers.0.resources.limits.memory", None)),
    *[("is probed in three ways", _set(f"containers.0.{probe}", None)) for probe in PROBES],
    ("takes no variables from Services", _set("enableServiceLinks", None)),
    ("is taken away one at a time", _without("PodDisruptionBudget")),
    ("is spread over machines and zones", _set("topologySpreadConstraints", None)),
    ("is spread over machines and zones", _set("topologySpreadConstraints.0", {
        "topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "else"}},
    })),
    ("is fenced in", _without("NetworkPolicy")),
    ("is fenced in", _outwards),
    ("is in a namespace that enforces it", _unlabelled),
    ("names its image's version", _set("containers.0.image", "ringcast")),
    ("names its image's version", _set("containers.0.image", "ringcast:latest")),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "mutate"), MUTATIONS, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(MUTATIONS)])
def test_a_pod_that_no_longer_keeps_a_rule_is_noticed(
    rule: str, mutate: Callable[[Object, list[Object]], None]
) -> None:
    objects = overlay("overlays/redis")
    mutate(one(objects, "StatefulSet", "ringcast"), objects)
    noticed = broken(objects)
    assert ("StatefulSet/ringcast", rule) in noticed
    assert {each for _, each in noticed} == {rule}


def test_every_rule_was_seen_to_notice() -> None:
    assert {rule for rule, _ in MUTATIONS} == set(RULES)
