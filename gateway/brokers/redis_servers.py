"""Where a deployment's Redis servers are: one, the master that Sentinels name, or the masters of a Cluster."""

from __future__ import annotations

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

from gateway.brokers.redis_live import Address
from gateway.brokers.url import split
from gateway.settings import ConfigError

SCHEMES = ("redis", "rediss", "redis+sentinel", "redis+cluster")
_FILES = {"tls_ca": "ssl_ca_certs", "tls_cert": "ssl_certfile", "tls_key": "ssl_keyfile"}
_OPTIONS = {"prefix", "tls", *_FILES}


@dataclass(frozen=True, slots=True)
class Url:
    """`redis://user:password@host:6379/0?prefix=rc`, with several `host:port` and, for Sentinel, the master's name."""

    kind: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    username: str | None
    password: str | None
    prefix: str
    tls: ssl.SSLContext | None
    files: tuple[tuple[str, str], ...]  # of TLS, by redis-py's names for them

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
        tls = parts.scheme == "rediss" or options.get("tls") == "true"
        return cls(
            kind, tuple(found), path, unquote(username) or None, unquote(password) or None,
            options.get("prefix", "ringcast"), _context(options) if tls else None,
            tuple((_FILES[name], options[name]) for name in _FILES if name in options),
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
        }  # fmt: skip
        if url.tls is not None:
            common |= {"ssl": True, **dict(url.files)}
        self._sentinel: Sentinel | None = None
        self.client: Redis | RedisCluster
        if url.kind == "redis+cluster":
            nodes = [ClusterNode(host, port) for host, port in url.hosts]
            self.client = RedisCluster(startup_nodes=nodes, **common)
        elif url.kind == "redis+sentinel":
            self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                list(url.hosts), sentinel_kwargs={"socket_timeout": within, "retry": Retry(NoBackoff(), 0)}, **common
            )
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
        return dict.fromkeys(slots, self._address(host, port))

    async def refresh(self) -> None:
        """Ask anew who is where: a server answered that it is not the one."""
        if isinstance(self.client, RedisCluster):
            await self.client.nodes_manager.initialize()
        else:
            await self.client.connection_pool.disconnect(inuse_connections=False)  # those fail by themselves

    def _address(self, host: str, port: int) -> Address:
        return Address(host, port, self.url.username, self.url.password, self.url.tls)

    async def close(self) -> None:
        await self.client.aclose()
        for sentinel in self._sentinel.sentinels if self._sentinel is not None else ():
            await sentinel.aclose()
