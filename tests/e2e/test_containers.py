"""deploy/Dockerfile and compose.yaml, as far as they can be held to something without a container engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from typing import Any

import httpx
import jwt
import pytest
from ruamel.yaml import YAML

from gateway.config import load
from tests.support.gateway import ROOT, free_port
from tests.support.image import TEXT, TREE, said, stages, started, variables

DEPLOY = ROOT / "deploy"
KEY = "a-key-of-at-least-thirty-two-bytes"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    read: dict[str, Any] = YAML(typ="safe").load(DEPLOY / "compose.yaml")
    return read


@pytest.mark.parametrize("stage", stages())
def test_what_is_copied_is_there(stage: str) -> None:
    """And is not ignored, as everything is that is not named; test_packaging.py carries the build's steps out."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    for step in said("COPY", stage):
        *sources, _ = step.split()
        if step.startswith("--from="):
            assert sources == [f"--from={'build-demo' if stage == 'demo' else 'build'}", TREE]
            continue
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def test_the_image_is_small_and_its_user_is_nobody() -> None:
    (base,) = re.findall(r"^ARG PYTHON=(\S+)$", TEXT, re.M)
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", base), "a version and a release of Debian; and no compiler"
    for stage in ("image", "demo"):
        assert said("FROM", stage) == ["${PYTHON}"], "it stands on the base, not on what built it"
        assert not [verb for verb, _ in stages()[stage] if verb in ("RUN", "ADD")], "nothing is built in what stays"
        assert said("USER", stage) == ["10001:10001"]


def test_the_image_serves_with_settings_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert started() == ["ringcast", "serve"]
    assert "ringcast" in scripts
    for name, value in variables().items():
        if name.startswith("RINGCAST_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("RINGCAST_API_KEYS", KEY)
    settings = load()
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert said("EXPOSE") == ["8000"]


def test_compose_keeps_to_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, DEPLOY / "compose.yaml"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def filled(environment: dict[str, str]) -> dict[str, str]:
    """As compose fills it: defaults as they are, and a key for what must be given."""
    return {
        name: re.sub(r"\$\{\w+:\?[^}]*\}", KEY, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
        for name, value in environment.items()
    }


def test_compose_starts_nodes_that_differ_in_nothing_but_their_names(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    image = f"ringcast:{version}"
    nodes = {name: service for name, service in compose["services"].items() if service.get("image") == image}
    assert set(nodes) == {"gateway-1", "gateway-2", "gateway-3"}
    for name, service in nodes.items():
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["environment"]["RINGCAST_NODE"] == name
        with monkeypatch.context() as here:
            for variable, value in filled(service["environment"]).items():
                here.setenv(variable, value)
            settings = load()
        assert settings.broker == "redis://redis:6379"
        assert settings.trusted_proxies == [compose["services"]["proxy"]["networks"]["default"]["ipv4_address"]]
        grace = float(service["stop_grace_period"].removesuffix("s"))
        assert grace >= settings.grace_period
        assert service["ulimits"]["nofile"] * 9 // 10 >= settings.max_connections


def test_what_compose_waits_for_can_be_asked_for_its_health(compose: dict[str, Any]) -> None:
    services = compose["services"]
    ours = {name for name, service in services.items() if "build" in service}  # the Dockerfile says how
    for service in services.values():
        for awaited, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy"
            assert awaited in ours or "test" in services[awaited]["healthcheck"]
    assert services["gateway-1"]["depends_on"]["nats"]["required"] is False, "without its profile there is none"
    for name in [*ours, "proxy"]:
        service = services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_proxy_of_compose_knows_its_nodes(compose: dict[str, Any]) -> None:
    proxy = compose["services"]["proxy"]
    (mounted,) = proxy["volumes"]
    config = (DEPLOY / mounted.split(":")[0]).read_text()
    assert set(re.findall(r"server (\S+):8000", config)) == set(proxy["depends_on"])
    (published,) = proxy["ports"]
    assert f"listen {published.split(':')[-1]};" in config


def test_the_demo_of_compose_is_served(compose: dict[str, Any]) -> None:
    """By the command of its stage, with the variables that compose gives it; its page may connect to the gateway."""
    services, port = compose["services"], free_port()
    demo = filled(services["demo"]["environment"])
    worker = filled(services["worker"]["environment"])
    assert worker.items() <= demo.items()
    assert demo["RINGCAST_URL"] == "http://proxy:8080"
    assert demo["DEMO_GATEWAY"] == f"http://{services['proxy']['ports'][0].rpartition(':')[0]}"
    host, _, there = services["demo"]["ports"][0].rpartition(":")
    assert there == said("EXPOSE", "demo")[0]
    origins = filled(services["gateway-1"]["environment"])["RINGCAST_ALLOWED_ORIGINS"].split(",")
    assert f"http://{host}" in origins
    assert services["worker"]["command"][:4] == ["celery", "--quiet", "--app", "client_demo.worker"]

    command = [sys.executable, "-m", *started("demo")]
    command[command.index(there)] = str(port)
    environment = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", **demo}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            deadline = time.monotonic() + 30
            while True:
                try:
                    page = client.get("/")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None, process.communicate()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            assert "<html" in page.text
            session = client.post("/demo/session", json={}).json()
        assert session["gateway"] == demo["DEMO_GATEWAY"]
        assert jwt.decode(session["token"], KEY, algorithms=["HS256"])["sub"] == "demo"
    finally:
        process.terminate()
        process.communicate(timeout=20)
