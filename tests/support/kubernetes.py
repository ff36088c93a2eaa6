"""What deploy/k8s renders to, and the schemas that a cluster would hold it to; no cluster is needed.

    python -m tests.support.kubernetes      brings what this machine lacks: kustomize, and the schemas of custom kinds

Kubernetes' own schemas come with `kubernetes-validate`; those of the Gateway API, its implementations and the
Prometheus operator from their own Go modules, so these need Go.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

from tests.support.gateway import ROOT

KUBERNETES = ROOT / "deploy" / "k8s"
OVERLAYS = ("base", "overlays/redis", "overlays/nats")
MINORS = sorted({tuple(map(int, v.split(".")[:2])) for v in kubernetes_validate.utils.all_versions()})
NEWEST = [f"{major}.{minor}" for major, minor in MINORS[-3:]]
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.5.0"
# Each module, and where in it its custom kinds are.
MODULES = {
    "sigs.k8s.io/gateway-api@v1.4.1": "config/crd/standard",
    "github.com/envoyproxy/gateway@v1.9.1": "charts/gateway-helm/charts/crds/crds/generated",
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": "example/prometheus-operator-crd",
    "istio.io/api@v1.32.0": "kubernetes",
}
NO_GO = "The schemas of custom kinds come from Go modules: install Go (https://go.dev/dl) and this test runs"

Object = dict[str, Any]


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization, as `kubectl apply -k` would send them."""
    kubectl, own = shutil.which("kubectl"), Path(sys.prefix, "bin", "kustomize")
    if kubectl is None and not own.exists():
        raise RuntimeError("Neither kubectl nor kustomize is here: install kubectl, or Go and run `make .venv/servers`")
    command = [kubectl, "kustomize"] if kubectl else [str(own), "build"]
    result = subprocess.run([*command, folder], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return list(yaml.load_all(result.stdout, yaml.CSafeLoader))


@cache
def _rendered(name: str) -> list[Object]:
    return render(KUBERNETES / name)


def overlay(name: str) -> list[Object]:
    """The objects of one of OVERLAYS, for the caller to change."""
    return copy.deepcopy(_rendered(name))


def rendered_with(tmp_path: Path, kustomization: str, beside: Mapping[str, str] | None = None) -> list[Object]:
    """The objects of another overlay, beside those of deploy/k8s/overlays, with these files in its folder."""
    shutil.copytree(KUBERNETES.parent, tmp_path / "deploy", dirs_exist_ok=True)
    folder = tmp_path / "deploy/k8s/overlays/of-a-test"
    folder.mkdir()
    for name, text in {"kustomization.yaml": kustomization, **(beside or {})}.items():
        (folder / name).write_text(text)
    return render(folder)


def title(each: Object) -> str:
    return f"{each['kind']}/{each['metadata']['name']}"


def one(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in objects if title(each) == f"{kind}/{name}"]
    return found


def workloads(objects: list[Object]) -> list[Object]:
    return [each for each in objects if "template" in each.get("spec", {})]


def pod(workload: Object) -> Object:
    """The spec of its pods."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def environment(container: Object, secrets: Mapping[str, Mapping[str, str]], pod_name: str) -> dict[str, str]:
    """What the kubelet would set: in the order of the list, `$(NAME)` being one that stands before.

    Raises KeyError where a Secret or a key that is not optional is missing.
    """
    found: dict[str, str] = {}
    for each in container.get("env", []):
        source = each.get("valueFrom", {})
        if "secretKeyRef" in source:
            wanted = source["secretKeyRef"]
            if wanted.get("optional") and wanted["key"] not in secrets.get(wanted["name"], {}):
                continue
            found[each["name"]] = secrets[wanted["name"]][wanted["key"]]
        elif "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "metadata.name"
            found[each["name"]] = pod_name
        else:
            found[each["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found.get(name[1], name[0]), each["value"])
    return found


def check(each: Object, version: str) -> None:
    """Hold an object to its schema, in which nothing unknown is allowed. Raises ValidationError; skips without Go."""
    try:
        kubernetes_validate.validate(each, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        Draft202012Validator(custom()[each["apiVersion"], each["kind"]]).validate(each)


@cache
def custom() -> dict[tuple[str, str], Object]:
    """The schemas of custom kinds, by apiVersion and kind."""
    found = {}
    for definition in _definitions():
        spec = definition["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}  # which every object has
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = _strict(schema)
    return found


def _definitions() -> Iterator[Object]:
    kinds = re.compile(
        r"^(gateways|httproutes|backendtrafficpolicies|servicemonitors|prometheusrules|destinationrules)\.", re.M
    )
    for module, folder in MODULES.items():
        for path in sorted((_fetched(module) / folder).glob("*.yaml")):
            for text in re.split(r"^---$", path.read_text(), flags=re.M):
                name = re.search(r"^  name: (\S+)$", text, re.M)
                if name and kinds.match(name[1]):
                    yield yaml.load(text, yaml.CSafeLoader)


def _fetched(module: str) -> Path:
    """The folder of a Go module, from Go's cache where it is there."""
    go = ["go", "mod", "download", "-json", module]
    result = subprocess.run(go, capture_output=True, text=True, cwd="/", timeout=300)
    told = json.loads(result.stdout or "{}")
    assert "Dir" in told, f"{module}: {told.get('Error') or result.stderr}"
    return Path(told["Dir"])


def _strict(schema: Any) -> Any:
    """The same, refusing fields that it does not name, as the API server's strict validation does."""
    if not isinstance(schema, dict):
        return schema
    partial = ("allOf", "anyOf", "oneOf", "not")  # say more of fields that are named elsewhere
    found = {key: value if key in partial else _strict(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if found.pop("x-kubernetes-int-or-string", False):
        found["type"] = ["integer", "string"]
    if found.pop("nullable", False) is True and "type" in found:
        found["type"] = [found["type"], "null"]
    return found


def main() -> None:
    if shutil.which("go") is None:
        print(f"{NO_GO}.", file=sys.stderr)
        return
    if shutil.which("kubectl") is None:
        target = str(Path(sys.prefix, "bin"))
        subprocess.run(["env", f"GOBIN={target}", "go", "install", KUSTOMIZE], check=True, cwd="/", timeout=900)
    for module in MODULES:
        _fetched(module)


if __name__ == "__main__":
    main()
