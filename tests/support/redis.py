"""Real redis-server processes, for tests: each on a free port with a data folder of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.gateway import free_port

READY_WITHIN = 20.0


class RedisServer:
    """One server. Restarts keep its port; what they keep of its data is the caller's choice."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise RuntimeError("redis-server is missing: install Debian's package redis-server")
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="ringcast-redis-"))
        self._command = [
            binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
            "--loglevel", "warning", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_WITHIN
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return self
            except (RedisConnectionError, BusyLoadingError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"redis-server did not start:\n{(self.folder / 'log').read_text()}") from None
                time.sleep(0.02)

    def client(self) -> Redis:
        """A blocking client; close it after use."""
        return Redis(port=self.port, socket_timeout=5)

    def kill(self) -> None:
        """As a power failure would: what was not saved is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """In good order: everything is saved and found again."""
        with self.client() as client:
            client.save()
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Another process, with nothing."""
        self.kill()
        (self.folder / "dump.rdb").unlink(missing_ok=True)
        self.start()

    def copy(self) -> None:
        """Keep what it holds now, for `go_back`."""
        with self.client() as client:
            client.save()
        shutil.copy(self.folder / "dump.rdb", self.folder / "copy.rdb")

    def go_back(self) -> None:
        """Another process, with what was copied."""
        self.kill()
        shutil.copy(self.folder / "copy.rdb", self.folder / "dump.rdb")
        self.start()

    def cut(self) -> None:
        """End the connections that listen."""
        with self.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()


class RedisCluster:
    """Three masters that share the slots, without replicas."""

    def __init__(self) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port")
        self.servers = [RedisServer(*options, str(free_port())) for _ in range(3)]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        addresses = [f"127.0.0.1:{server.port}" for server in self.servers]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        self.agreed()
        return self

    def agreed(self) -> None:
        """Wait until every server says that the cluster is well."""
        deadline = time.monotonic() + READY_WITHIN
        for server in self.servers:
            with server.client() as client:
                while b"cluster_state:ok" not in bytes(client.execute_command("CLUSTER", "INFO")):
                    assert time.monotonic() < deadline, "the cluster does not come up"
                    time.sleep(0.05)

    def close(self) -> None:
        for server in self.servers:
            server.close()


class RedisSentinel:
    """A master, a replica, and three Sentinels that watch them."""

    name = "main"

    def __init__(self) -> None:
        self.master = RedisServer()
        self.replica = RedisServer("--replicaof", "127.0.0.1", str(self.master.port), "--repl-diskless-sync-delay", "0")
        self.sentinels: list[tuple[int, subprocess.Popen[bytes]]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="ringcast-sentinel-"))

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port, _ in self.sentinels) + f"/{self.name}"

    def start(self) -> Self:
        self.master.start()
        self.replica.start()
        self.synced()
        for _ in range(3):
            port = free_port()
            config = self._folder / f"{port}.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {self._folder}\n"
                f"sentinel monitor {self.name} 127.0.0.1 {self.master.port} 2\n"
                f"sentinel down-after-milliseconds {self.name} 1000\n"
                f"sentinel failover-timeout {self.name} 5000\n"
            )
            with (self._folder / "log").open("ab") as log:
                command = ["redis-server", str(config), "--sentinel"]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.sentinels.append((port, process))
        deadline = time.monotonic() + READY_WITHIN
        for port, _ in self.sentinels:
            while self._others(port) < 2:
                assert time.monotonic() < deadline, "the Sentinels do not find each other"
                time.sleep(0.1)
        return self

    def _others(self, port: int) -> int:
        try:
            with Redis(port=port, socket_timeout=5, decode_responses=True) as client:
                master = client.execute_command("SENTINEL", "MASTER", self.name)
        except RedisConnectionError:
            return 0
        pairs = master if isinstance(master, dict) else dict(zip(master[::2], master[1::2], strict=True))
        return int(pairs["num-other-sentinels"]) if int(pairs["num-slaves"]) else 0

    def synced(self) -> None:
        """Wait until the replica has all that its master has."""
        deadline = time.monotonic() + READY_WITHIN
        with self.master.client() as master:
            while not int(master.execute_command("WAIT", 1, 100)):
                assert time.monotonic() < deadline, "the replica does not follow"

    def detach(self, wipe: bool = False) -> None:
        """Let the replica have all there is, or nothing, and hear of nothing that comes after."""
        self.synced()
        with self.replica.client() as replica:
            replica.replicaof("127.0.0.1", "1")  # nobody is there; its role stays what the Sentinels look for
            if wipe:
                replica.config_set("replica-read-only", "no")
                replica.flushall()

    def promote(self) -> None:
        """The master dies, and the Sentinels put the replica into its place."""
        self.master.kill()
        self._wait_for(self.replica)

    def fail_over(self) -> None:
        """The replica takes over in good order."""
        self.synced()
        port, _ = self.sentinels[0]
        with Redis(port=port, socket_timeout=5) as client:
            client.execute_command("SENTINEL", "FAILOVER", self.name)
        self._wait_for(self.replica)
        self.master, self.replica = self.replica, self.master
        self.synced()

    def _wait_for(self, server: RedisServer) -> None:
        deadline = time.monotonic() + READY_WITHIN
        for port, _ in self.sentinels:
            with Redis(port=port, socket_timeout=5) as client:
                while int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1]) != server.port:
                    assert time.monotonic() < deadline, "the Sentinels do not promote the replica"
                    time.sleep(0.05)

    def close(self) -> None:
        for _, process in self.sentinels:
            process.kill()
            process.wait()
        self.master.close()
        self.replica.close()
        shutil.rmtree(self._folder, ignore_errors=True)
