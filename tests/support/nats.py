"""Real nats-server processes with JetStream, alone or as a cluster, for tests; each on free ports with its own folder.

The application's account lets anyone in, unless the server is given a password; `sys` may do what operators do.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import nats
import nats.errors
from nats.aio.client import Client

from gateway.brokers import open_broker
from gateway.brokers.base import Broker
from gateway.brokers.nats import NatsBroker
from gateway.settings import Settings
from tests.support.deployments import Deployment
from tests.support.gateway import free_port

READY_WITHIN = 30.0


class NatsServer:
    """One server process. Restarts keep its ports; what they keep of its data is the caller's choice."""

    def __init__(
        self, name: str = "n1", *, password: str | None = None, tls: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`config` replaces parts of the server's configuration; None takes one out."""
        binary = shutil.which("nats-server") or str(Path(sysconfig.get_path("scripts"), "nats-server"))
        self.name = name
        self.port, self.monitor, self.cluster_port = free_port(), free_port(), free_port()
        self.password = password
        self.tls = tls
        self.config = config or {}
        self.folder = Path(tempfile.mkdtemp(prefix="ringcast-nats-"))
        self.routes: list[int] = []
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        login = f"app:{self.password}@" if self.password else ""
        return f"nats://{login}127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _config(self) -> str:
        config: dict[str, Any] = {
            "server_name": self.name, "listen": f"127.0.0.1:{self.port}", "http": f"127.0.0.1:{self.monitor}",
            "max_payload": 4 << 20,
            "jetstream": {"store_dir": str(self.data), "max_file": 1 << 30, "max_mem": 256 << 20},
            "accounts": {
                "SYS": {"users": [{"user": "sys", "password": "sys"}]},
                "APP": {"jetstream": "enabled", "users": [{"user": "app", "password": self.password or "app"}]},
            },
            "system_account": "SYS",
        }  # fmt: skip
        if self.password is None:
            config["no_auth_user"] = "app"
        if self.tls is not None:
            config["tls"] = self.tls
        if self.routes:
            routes = [f"nats://127.0.0.1:{port}" for port in self.routes]
            config["cluster"] = {"name": "test", "listen": f"127.0.0.1:{self.cluster_port}", "routes": routes}
        return json.dumps({name: value for name, value in (config | self.config).items() if value is not None})

    def launch(self) -> None:
        """Start it without waiting: a server of a cluster is ready when the others are there."""
        config = self.folder / "server.conf"
        config.write_text(self._config())
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Until it serves and its streams are there."""
        assert self._process is not None
        deadline = time.monotonic() + READY_WITHIN
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{self.monitor}/healthz", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server did not become ready:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def start(self) -> None:
        self.launch()
        self.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """In good order."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Client]:
        """A connection that may do what operators do."""
        client = await nats.connect(f"nats://127.0.0.1:{self.port}", user="sys", password="sys")
        try:
            yield client
        finally:
            await client.close()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection of the application's account."""
        client = await nats.connect(self.url)
        try:
            yield client
        finally:
            await client.close()


def _each(work: Any, servers: Iterable[NatsServer]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(work, servers))


class NatsAlone(Deployment):
    """One nats-server, whose streams are files."""

    size = 1
    options = ""

    async def open(self) -> None:
        self.servers = [NatsServer(f"n{number}") for number in range(1, self.size + 1)]
        if self.size > 1:
            for server in self.servers:
                server.routes = [other.cluster_port for other in self.servers if other is not server]
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        for server in self.servers:
            server.launch()
        _each(NatsServer.wait, self.servers)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"nats://{hosts}{self.options}"

    def broker(self, settings: Settings) -> Broker:
        return open_broker(settings)

    def _kill(self) -> None:
        _each(NatsServer.kill, self.servers)

    async def wipe(self) -> None:
        def wipe() -> None:
            self._kill()
            for server in self.servers:
                shutil.rmtree(server.data)
            self._start()

        await asyncio.to_thread(wipe)

    async def restart(self) -> None:
        def restart() -> None:
            for server in self.servers:  # a cluster's one after the other
                server.stop()
                server.start()

        await asyncio.to_thread(restart)

    async def copy(self) -> None:
        def copy() -> None:
            for server in self.servers:
                server.pause()
            for server in self.servers:
                shutil.rmtree(server.folder / "copy", ignore_errors=True)
                shutil.copytree(server.data, server.folder / "copy")
            for server in self.servers:
                server.resume()

        await asyncio.to_thread(copy)

    async def go_back(self) -> None:
        def go_back() -> None:
            self._kill()
            for server in self.servers:
                shutil.rmtree(server.data)
                shutil.copytree(server.folder / "copy", server.data)
            self._start()

        await asyncio.to_thread(go_back)

    async def cut(self, broker: Broker) -> None:
        """As an operator who closes the node's connection."""
        assert isinstance(broker, NatsBroker)
        link = broker.link
        async with self.servers[0].operator() as operator:
            subject = f"$SYS.REQ.SERVER.{link.connection.server_id}.KICK"
            await operator.request(subject, json.dumps({"cid": link.connection.client_id}).encode(), timeout=5)

    async def step_down(self, stream: str) -> None:
        """Have another server lead the stream; asked again while nobody leads it."""
        async with self.servers[0].client() as client, asyncio.timeout(READY_WITHIN):
            while True:
                with suppress(nats.errors.TimeoutError):
                    await client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", b"", timeout=1)
                    return

    async def leader(self, stream: str) -> NatsServer:
        """The server that leads the stream; asked for again while none does."""
        async with self.servers[0].client() as client, asyncio.timeout(READY_WITHIN):
            while True:
                with suppress(nats.errors.TimeoutError):
                    answer = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=1)
                    name = json.loads(answer.data)["cluster"].get("leader")
                    for server in self.servers:
                        if server.name == name:
                            return server

    async def close(self) -> None:
        await asyncio.to_thread(_each, NatsServer.close, self.servers)


class NatsCluster(NatsAlone):
    """Three servers, three replicas."""

    size = 3


class NatsInMemory(NatsAlone):
    """One server that keeps its streams in memory: a restart is a wipe."""

    options = "/?storage=memory"
