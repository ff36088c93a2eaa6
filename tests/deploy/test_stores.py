"""The overlays' stores with the commands, files and probes that are rendered for them, and a node that finds them.

Only the paths, addresses and ports of a pod become those of a folder and of this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.test_kubernetes import SECRETS
from tests.support.gateway import Gateway, free_port
from tests.support.kubernetes import environment, one, overlay, pod

PASSWORD = "3e8-begins_with_a_number"
WITHIN = 20.0
IMAGE = {"nats": ["nats-server"]}  # what the image runs before `args`; the other store names its command itself


class Store:
    """A store's container as a process of this machine."""

    def __init__(self, name: str, folder: Path) -> None:
        self.objects = overlay(f"overlays/{name}")
        workload = one(self.objects, "StatefulSet", f"ringcast-{name}")
        (self.container,) = pod(workload)["containers"]
        self.folder = folder
        self.ports = {each["containerPort"]: free_port() for each in self.container["ports"]}
        self.secrets = SECRETS | {f"ringcast-{name}": {"password": PASSWORD}}
        path = f"{os.environ['PATH']}:{sysconfig.get_path('scripts')}"
        self.env = {"PATH": path, **environment(self.container, self.secrets, f"ringcast-{name}-0")}
        self.mounts = {each["name"]: each["mountPath"] for each in self.container["volumeMounts"]}
        for mount in self.mounts.values():
            self._here(mount).mkdir(parents=True)
        for volume in pod(workload)["volumes"]:
            config = one(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
            for file, text in config.items():
                (self._here(self.mounts[volume["name"]]) / file).write_text(self.local(text))
        self.command = [*IMAGE.get(name, []), *self.container.get("command", []), *self.container.get("args", [])]

    def _here(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def local(self, text: str) -> str:
        for mount in self.mounts.values():
            text = text.replace(mount, str(self._here(mount)))
        for there, here in self.ports.items():
            text = text.replace(f"port: {there}\n", f"port: {here}\n").replace(f"http: {there} ", f"http: {here} ")
        return text

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        command = [self.local(part) for part in self.command]
        if "redis-server" in command[-1]:  # its file names no port, and the pod's is the usual one
            command[-1] = command[-1].replace("\nEND", f"\nport {self.ports[6379]}\nEND")
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, text=True, cwd=self.folder)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(WITHIN)

    def probe(self, which: str) -> bool:
        """Ask as the kubelet does; an exec probe runs in the container, and has its environment."""
        asked = self.container[which]
        if "exec" in asked:
            command = asked["exec"]["command"]
            command = [command[0], "-p", str(self.ports[6379]), *command[1:]]
            return subprocess.run(command, env=self.env, capture_output=True, timeout=10).returncode == 0
        named = {each["name"]: each["containerPort"] for each in self.container["ports"]}
        port = self.ports[named[asked["httpGet"]["port"]]]
        try:
            return httpx.get(f"http://127.0.0.1:{port}{asked['httpGet']['path']}", trust_env=False).is_success
        except httpx.TransportError:
            return False


@pytest.mark.parametrize("name", ["redis", "nats"])
def test_the_store_of_an_overlay_is_found_by_its_nodes(name: str, tmp_path: Path) -> None:
    store = Store(name, tmp_path)
    workload = one(store.objects, "StatefulSet", "ringcast")
    (container,) = pod(workload)["containers"]
    variables = environment(container, store.secrets, "ringcast-0")
    address = variables["RINGCAST_BROKER"].rpartition("@")[2]
    port = store.ports[int(address.rpartition(":")[2])]
    (volume,) = pod(workload)["volumes"]
    (toml,) = one(store.objects, "ConfigMap", volume["configMap"]["name"])["data"].values()
    settings: dict[str, Any] = {"broker": variables["RINGCAST_BROKER"].replace(address, f"127.0.0.1:{port}")}
    with store.running() as process:
        end = time.monotonic() + WITHIN
        while not store.probe("startupProbe"):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        assert store.probe("livenessProbe")
        assert store.probe("readinessProbe")
        with Gateway(toml=toml, node=variables["RINGCAST_NODE"], **settings) as gateway:
            receipt = gateway.publish("user:ann", {"n": 1})
            with gateway.http() as client:
                end = time.monotonic() + WITHIN  # it is unready for a while after its event loop was late
                while not (answer := client.get("/readyz")).is_success:
                    assert time.monotonic() < end, answer.text
                    time.sleep(0.05)
                held = client.get("/v1/history?channel=user:ann").json()["messages"]
            assert [message["offset"] for message in held] == [receipt["offset"]]
            assert PASSWORD not in gateway.stderr
        assert PASSWORD not in (tmp_path / "log").read_text()
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
        assert any((tmp_path / "data").iterdir()), "what was acknowledged is on its volume"
    assert process.returncode in (0, 1), (tmp_path / "log").read_text()
    assert not store.probe("livenessProbe")


def test_a_store_lets_nobody_in_without_its_password(tmp_path: Path) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is missing: install Debian's package redis-tools")
    store = Store("redis", tmp_path)
    with store.running():
        end = time.monotonic() + WITHIN
        while not store.probe("startupProbe"):
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        store.env["REDISCLI_AUTH"] = "another"
        assert not store.probe("readinessProbe")
