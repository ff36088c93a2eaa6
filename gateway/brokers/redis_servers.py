"""Where a deployment's Redis servers are: one, the master that Sentinels name, or the masters of a Cluster."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.brokers.cancelled import raise_if_cancelled
from gateway.brokers.redis_live import Address
from gateway.brokers.url import split
from gateway.settings import ConfigError

SCHEMES = ("redis", "rediss", "redis+sentinel", "redis+cluster")
_FILES = {"tls_ca": "ssl_ca_certs", "tls_cert": "ssl_certfile", "tls_key": "ssl_keyfile"}
WATCH = 0.5  # seconds between two questions to the Sentinels who the master is
_OPTIONS = {"prefix", "tls", "sentinel_user", "sentinel_password", "sentinel_tls", *_FILES}


@dataclass(frozen=True, slots=True)
class Url:
    """`redis://user:password@host:6379/0?prefix=rc`, with several `host:port` and, for Sentinel, the master's name.

    The Sentinels are asked without credentials unless options name some, and over TLS where the servers are.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    username: str | None
    password: str | None
    prefix: str
    tls: ssl.SSLContext | None
    files: tuple[tuple[str, str], ...]  # of TLS, by redis-py's names for them
    sentinel_user: str | None = None
    sentinel_password: str | None = None
    sentinel_tls: bool = False

    @classmethod
    def parse(cls, url: str) -> Url:
        """Raises ConfigError with a sentence."""
        parts = split(url)
        kind = "redis" if parts.scheme == "rediss" else parts.scheme
        options = dict(parse_qsl(parts.query))
        if unknown := set(options) - _OPTIONS:
            raise ConfigError(
                f"broker: {sorted(unknown)[0]!r} is no option of a Redis URL; there are {sorted(_OPTIONS)}"
            )
        login, _, hosts = parts.netloc.rpartition("@")
        username, _, password = login.partition(":")
        default = 26379 if kind == "redis+sentinel" else 6379
        found: list[tuple[str, int]] = []
        for host in hosts.split(","):
            name, colon, port = host.rpartition(":")
            if not colon or name.endswith(":") or (host.startswith("[") and host.endswith("]")):
                name, port = host, str(default)
            if not port.isdecimal():
                raise ConfigError(f"broker: {host!r} is not host:port")
            found.append((name.strip("[]") or "localhost", int(port)))
        path = parts.path.strip("/")
        if kind == "redis+sentinel" and not path:
            raise ConfigError("broker: name the master, as in redis+sentinel://host:26379/mymaster")
        if kind == "redis" and path and not path.isdecimal():
            raise ConfigError(f"broker: {path!r} is not the number of a database")
        for name in ("tls", "sentinel_tls"):
            if options.get(name, "true") not in ("true", "false"):
                raise ConfigError(f"broker: {name} is true or false, not {options[name]!r}")
        tls = parts.scheme == "rediss" or options.get("tls") == "true"
        sentinel_tls = options["sentinel_tls"] == "true" if "sentinel_tls" in options else tls
        return cls(
            kind, tuple(found), path, unquote(username) or None, unquote(password) or None,
            options.get("prefix", "ringcast"), _context(options) if tls else None,
            tuple((_FILES[name], options[name]) for name in _FILES if name in options),
            options.get("sentinel_user"), options.get("sentinel_password"), sentinel_tls,
        )  # fmt: skip


def _context(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("tls_ca"))
        if "tls_cert" in options:
            context.load_cert_chain(options["tls_cert"], options.get("tls_key"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"broker: the TLS files cannot be used: {error}") from None
    return context


class Servers:
    """The client for commands, and which server announces which slot's messages."""

    def __init__(self, url: Url, within: float) -> None:
        self.url = url
        self.sharded = url.kind == "redis+cluster"
        # No retries: a publish whose answer was lost may have been stored, and whoever asked for it decides.
        common: dict[str, Any] = {
            "username": url.username, "password": url.password, "retry": Retry(NoBackoff(), 0),
            "socket_timeout": within, "socket_connect_timeout": within, "decode_responses": False,
            "driver_info": None,  # no CLIENT SETINFO: a right less to grant, and old servers do not know it
        }  # fmt: skip
        over_tls = {"ssl": True, **dict(url.files)}
        if url.tls is not None:
            common |= over_tls
        self._common = common
        self._masters: dict[str, Redis] = {}  # of a cluster, those whose keys were looked at
        self._sentinel: Sentinel | None = None
        self._master: tuple[str, int] | None = None  # the one that the Sentinels named first since `refresh`
        self.client: Redis | RedisCluster
        if url.kind == "redis+cluster":
            nodes = [ClusterNode(host, port) for host, port in url.hosts]
            self.client = RedisCluster(startup_nodes=nodes, **common)
        elif url.kind == "redis+sentinel":
            asking: dict[str, Any] = {
                "username": url.sentinel_user, "password": url.sentinel_password, "retry": Retry(NoBackoff(), 0),
                "socket_timeout": within, "socket_connect_timeout": within, "driver_info": None,
                **(over_tls if url.sentinel_tls else {}),
            }  # fmt: skip
            self._sentinel = Sentinel(list(url.hosts), sentinel_kwargs=asking, **common)  # type: ignore[no-untyped-call]
            self.client = self._sentinel.master_for(url.path)
        else:
            host, port = url.hosts[0]
            self.client = Redis(host=host, port=port, db=int(url.path or 0), **common)

    async def place(self, slots: Iterable[int]) -> dict[int, Address]:
        """The address of the master of each slot. Raises RedisError."""
        if isinstance(self.client, RedisCluster):
            await self.client.initialize()
            found = {}
            for slot in slots:
                node = self.client.nodes_manager.get_node_from_slot(slot)
                found[slot] = self._address(str(node.host), int(node.port))
            return found
        host, port = self.url.hosts[0]
        if self._sentinel is not None:
            found_host, found_port = await self._sentinel.discover_master(self.url.path)
            host, port = str(found_host), int(found_port)
            if self._master is None:  # else `moved` is to notice that it is another one than the rest is listened to at
                self._master = host, port
        return dict.fromkeys(slots, self._address(host, port))

    async def master(self, slot: int) -> Redis:
        """The client for a transaction that looks at keys of this slot. Raises RedisError, RedisClusterException.

        On a cluster not redis-py's own: that queues each command of a transaction in a thread with an event loop of its
        own (8.1, `TransactionStrategy`), where after a lost connection it also opens the next ones, for a loop that is
        gone when they are used.
        """
        if not isinstance(self.client, RedisCluster):
            return self.client
        await self.client.initialize()
        node = self.client.nodes_manager.get_node_from_slot(slot)
        found = self._masters.get(node.name)
        if found is None:
            found = self._masters[node.name] = Redis(host=str(node.host), port=int(node.port), **self._common)
        return found

    def server_of(self, slot: int) -> str:
        """Which server a command of this slot goes to, as far as is known; "" where there is but one."""
        if isinstance(self.client, RedisCluster):
            nodes = self.client.nodes_manager.slots_cache.get(slot)
            return str(nodes[0].name) if nodes else ""
        return ""

    async def moved(self) -> None:
        """Returns once the Sentinels name another master than the one that was first asked since `refresh`.

        The old one may live on and take writes, all of which are lost, for the 10 seconds that pass until the
        Sentinels tell it to follow the new one, and only then ends its connections.
        """
        while True:
            await asyncio.sleep(WATCH)
            if self._sentinel is None or self._master is None:
                continue
            try:
                host, port = await self._sentinel.discover_master(self.url.path)
            except (RedisError, OSError):  # between two masters; whoever needs one is told so
                raise_if_cancelled()
                continue
            raise_if_cancelled()
            if (str(host), int(port)) != self._master:
                return

    async def refresh(self) -> None:
        """Ask anew who is where: a server answered that it is not the one."""
        self._master = None
        if isinstance(self.client, RedisCluster):
            await self.client.initialize()  # or its parser of commands would never be
            await self.client.nodes_manager.initialize()
            gone = self._masters.keys() - self.client.nodes_manager.nodes_cache.keys()
            for name in gone:
                await self._masters.pop(name).aclose()
        clients = self._masters.values() if isinstance(self.client, RedisCluster) else [self.client]
        for client in clients:
            pool = client.connection_pool
            # After use: a master that was replaced may live on. (redis-py has no types for it.)
            await pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
            await pool.disconnect(inuse_connections=False)

    def _address(self, host: str, port: int) -> Address:
        return Address(host, port, self.url.username, self.url.password, self.url.tls)

    async def close(self) -> None:
        await self.client.aclose()
        if isinstance(self.client, RedisCluster):
            # After a lost connection redis-py means to read the topology anew, and takes itself for closed until then:
            # its aclose() does nothing, and the other connections stay open (redis/redis-py#3572 is the symptom).
            for which in ("nodes_cache", "startup_nodes"):
                await self.client.nodes_manager.aclose(which)
        for master in self._masters.values():
            await master.aclose()
        for sentinel in self._sentinel.sentinels if self._sentinel is not None else ():
            await sentinel.aclose()
