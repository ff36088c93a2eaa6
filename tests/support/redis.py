"""Real redis-server processes, for tests: each on a free port with a data folder of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.certificates import Certificate
from tests.support.gateway import free_port

READY_WITHIN = 20.0


class RedisServer:
    """One server. Restarts keep its port, unless another is set; what they keep of its data is the caller's choice.

    `tls` holds a key and a certificate: then it speaks nothing else, and asks its clients for one as well.
    """

    def __init__(self, *options: str, port: int | None = None, tls: Certificate | None = None) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise RuntimeError("redis-server is missing: install Debian's package redis-server")
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="ringcast-redis-"))
        self._command = [
            binary, "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "",
            "--loglevel", "warning", *options,
        ]  # fmt: skip
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        with (self.folder / "log").open("ab") as log:
            command = [*self._command, *_listening(self.port, self._tls)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
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
        return Redis(host="127.0.0.1", port=self.port, socket_timeout=5, **_client_options(self._tls))

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

    def hand_over(self, other: RedisServer) -> None:
        """FAILOVER to another server, which is to have all of it; this one lives on as its replica."""
        with self.client() as client, other.client() as replica:
            replica.replicaof("127.0.0.1", str(self.port))
            assert client.execute_command("WAIT", 1, 5000)
            client.execute_command("FAILOVER", "TO", "127.0.0.1", other.port, "TIMEOUT", 5000)
            while replica.execute_command("ROLE")[0] != b"master":
                time.sleep(0.005)

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

    def __init__(self, *more: str, tls: Certificate | None = None) -> None:
        options = (*more, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port")
        self.servers = [RedisServer(*options, str(free_port()), tls=tls) for _ in range(3)]
        self._cli = ["--tls", "--cacert", tls.file, "--cert", tls.file, "--key", tls.key] if tls else []

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        addresses = [f"127.0.0.1:{server.port}" for server in self.servers]
        subprocess.run(
            ["redis-cli", *self._cli, "--cluster", "create", *addresses, "--cluster-yes"],
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

    def move(self, slot: int) -> None:
        """Hand a slot from its server to the next one, key by key, as redis-cli does it."""
        with ExitStack() as stack:
            clients = [stack.enter_context(server.client()) for server in self.servers]
            ids = [_words(client, "CLUSTER", "MYID") for client in clients]
            first = next(n for n, client in enumerate(clients) if _serves(client, slot))
            then = (first + 1) % len(clients)
            clients[then].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[first])
            clients[first].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[then])
            while keys := clients[first].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
                port = self.servers[then].port
                clients[first].execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
            for n in (then, first, 3 - first - then):
                clients[n].execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[then])

    def close(self) -> None:
        for server in self.servers:
            server.close()


def _words(client: Redis, *command: str) -> str:
    answer: bytes = client.execute_command(*command)  # type: ignore[no-untyped-call]
    return answer.decode()


def _serves(client: Redis, slot: int) -> bool:
    for line in _words(client, "CLUSTER", "NODES").splitlines():
        fields = line.split()
        if "myself" in fields[2]:
            ranges = [part.split("-") for part in fields[8:] if not part.startswith("[")]
            return any(int(of[0]) <= slot <= int(of[-1]) for of in ranges)
    return False


class RedisSentinel:
    """A master, a replica, and three Sentinels that watch them."""

    name = "main"

    def __init__(self, *config: str, tls: Certificate | None = None, password: str | None = None) -> None:
        """`config` are lines of the Sentinels' own configuration, `password` is what they ask for."""
        at_once = ("--repl-diskless-sync-delay", "0")
        self.master = RedisServer(*at_once, tls=tls)
        self.replica = RedisServer("--replicaof", "127.0.0.1", str(self.master.port), *at_once, tls=tls)
        self._config, self._tls, self._password = config, tls, password
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
            options = _listening(port, self._tls)
            pairs = zip(options[::2], options[1::2], strict=True)
            lines = [f"{name.removeprefix('--')} {value}" for name, value in pairs]
            config.write_text(
                "\n".join([*lines, *self._config, ""]) + f"bind 127.0.0.1\ndir {self._folder}\n"
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

    def _asking(self, port: int, **options: Any) -> Redis:
        """A client of a Sentinel."""
        return Redis(host="127.0.0.1", port=port, socket_timeout=5, password=self._password,
                     **_client_options(self._tls), **options)  # fmt: skip

    def _others(self, port: int) -> int:
        try:
            with self._asking(port, decode_responses=True) as client:
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

    def rejoin(self) -> None:
        """The master that died comes back with nothing, as the replica of the one that took its place."""
        self.master.start()
        self.master, self.replica = self.replica, self.master
        with self.replica.client() as old:
            old.replicaof("127.0.0.1", str(self.master.port))
        self.synced()
        deadline = time.monotonic() + READY_WITHIN
        while not self._promotable():
            assert time.monotonic() < deadline, "the Sentinels do not take it for a good replica"
            time.sleep(0.1)

    def _promotable(self) -> bool:
        with Redis(port=self.sentinels[0][0], socket_timeout=5, decode_responses=True) as client:
            found = client.sentinel_slaves(self.name)
        return any(
            int(each["port"]) == self.replica.port and each["flags"] == "slave" and each["master-link-status"] == "ok"
            for each in found
        )

    def fail_over(self, *, in_good_order: bool = True) -> None:
        """The replica takes over; in good order with no loss, else as an operator would who knows no better.

        That order is: writes pause, and the old master is told at once to follow the new one. The Sentinels tell it
        after 10 seconds, and until then it takes writes and loses them.
        """
        self.synced()
        with self.master.client() as old, self.replica.client() as new:
            if in_good_order:
                old.execute_command("CLIENT", "PAUSE", 30_000, "WRITE")
                while new.info("replication")["slave_repl_offset"] < old.info("replication")["master_repl_offset"]:
                    time.sleep(0.01)
            port, _ = self.sentinels[0]
            with self._asking(port) as client:
                self._order(client)
            self._wait_for(self.replica)
            if in_good_order:
                old.replicaof("127.0.0.1", str(self.replica.port))
                old.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                old.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        self.master, self.replica = self.replica, self.master
        deadline = time.monotonic() + READY_WITHIN
        with self.replica.client() as old:
            while old.execute_command("ROLE")[0] != b"slave":
                assert time.monotonic() < deadline, "the old master is not told"
                time.sleep(0.05)
            old.execute_command("CLIENT", "UNPAUSE")
        self.synced()

    def _order(self, sentinel: Redis) -> None:
        """FAILOVER, once the Sentinel has looked at the replica lately enough to take it for a good one."""
        deadline = time.monotonic() + READY_WITHIN
        while True:
            try:
                sentinel.execute_command("SENTINEL", "FAILOVER", self.name)  # type: ignore[no-untyped-call]
                return
            except ResponseError as error:
                if "NOGOODSLAVE" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _wait_for(self, server: RedisServer) -> None:
        deadline = time.monotonic() + READY_WITHIN
        for port, _ in self.sentinels:
            while self.named(port) != server.port:
                assert time.monotonic() < deadline, "the Sentinels do not promote the replica"
                time.sleep(0.05)

    def named(self, sentinel: int | None = None) -> int:
        """The port of the master, as the Sentinel of this port, or the first, names it."""
        with self._asking(sentinel or self.sentinels[0][0]) as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])

    def close(self) -> None:
        for _, process in self.sentinels:
            process.kill()
            process.wait()
        self.master.close()
        self.replica.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _listening(port: int, tls: Certificate | None) -> list[str]:
    if tls is None:
        return ["--port", str(port)]
    return ["--port", "0", "--tls-port", str(port), "--tls-cert-file", tls.file, "--tls-key-file", tls.key,
            "--tls-ca-cert-file", tls.file, "--tls-replication", "yes", "--tls-cluster", "yes"]  # fmt: skip


def _client_options(tls: Certificate | None) -> dict[str, Any]:
    return {"ssl": True, "ssl_ca_certs": tls.file, "ssl_certfile": tls.file, "ssl_keyfile": tls.key} if tls else {}
