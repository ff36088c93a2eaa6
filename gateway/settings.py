"""Every setting with its default and unit, checked by itself and together with the others."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from functools import lru_cache
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

BROKERS = ("memory", "redis", "rediss", "redis+sentinel", "redis+cluster", "nats", "tls")
MAKE_A_KEY = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
PREFIX = "RINGCAST_"
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?")
_KEY_BYTES = 32  # RFC 7518, 3.2: a key of HS256 has at least the size of the hash


# Seconds that a node takes to end beside drain_wait and drain: the last words of its clients (2), what they have asked
# for (10), and its own to the other nodes (2).
ENDING = 14.0


class ConfigError(Exception):
    """A setting that cannot work, in one sentence that names it and says what to write instead."""


def seconds(value: Any) -> Any:
    """Read a duration such as `250ms`, `30s`, `5m`, `24h`, `30d`; a bare number is seconds."""
    if isinstance(value, str | bool):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)?", str(value).strip())
        if not match:
            raise ValueError(f"{value!r} is not a duration; write for example 250ms, 30s, 5m or 24h")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


def size(value: Any) -> Any:
    """Read a size such as `64KiB`, `16MiB`; a bare number is bytes."""
    if isinstance(value, str | bool):
        match = re.fullmatch(r"(\d+)\s*(KiB|MiB|GiB)?", str(value).strip())
        if not match:
            raise ValueError(f"{value!r} is not a size; write for example 65536, 64KiB or 16MiB")
        return int(match[1]) * _SIZES[match[2] or ""]
    return value


def listed(value: Any) -> Any:
    """Read a comma separated list; the environment and flags know no other."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0, allow_inf_nan=False)]
Interval = Annotated[Duration, Field(gt=0)]  # a duration that 0 would turn into a busy loop, or into "never"
Size = Annotated[int, BeforeValidator(size), Field(ge=0)]
Listed = Annotated[list[str], NoDecode, BeforeValidator(listed)]


class Policy(BaseModel):
    """What a namespace's channels keep, and what a slow reader of them is owed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    history_size: Annotated[int, Field(ge=1)] = 1000  # messages a channel
    history_ttl: Annotated[Duration, Field(ge=1)] = 900.0  # a message's age at most
    history_bytes: Annotated[Size, Field(ge=1)] = 16 << 20  # a channel's log at most
    keyed: bool = False
    key_ttl: Interval = 30 * 86400.0
    max_keys: Annotated[int, Field(ge=1)] = 1000
    presence: bool = False
    slow: Literal["catch_up", "latest"] = "catch_up"


TABLE = Policy(keyed=True, slow="latest")  # job state, presence, membership, revocations
_DEFAULT = Policy()
_OWN = ("jobs", "presence", "ringcast")  # namespaces whose policy is the gateway's own


@lru_cache
def _members(most: int) -> Policy:
    return TABLE.model_copy(update={"max_keys": most})


class Settings(BaseSettings):
    """One node's settings, all checked at start. Its repr shows no secret."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    tls_certificate: str | None = None  # a PEM file with the whole chain; without one TLS is a proxy's work
    tls_key: str | None = None  # a PEM file; without one the key is in the certificate's
    broker: str = Field(default="memory://", repr=False)  # a URL may hold a password
    workers: Annotated[int, Field(ge=1, le=256)] = 1  # processes that share the port, each a node
    log_level: Literal["debug", "info", "warning", "error"] = "info"  # of what the gateway itself logs, to stderr
    log_format: Literal["text", "json"] = "text"  # lines for people, or an object a line
    access_log: bool = False  # log each request that was answered, each connection that ended or was refused
    tracing: bool = False  # spans of publishes and deliveries, by OpenTelemetry, as OTEL_* variables say
    node: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    advertise: str | None = None  # the URL at which clients reach this very node; told to those whose home it is
    node_ttl: Annotated[Interval, Field(ge=0.5)] = 6.0  # after so much silence a node is taken for gone
    drain_wait: Duration = 5.0  # after leaving the ring, how long to serve as before
    drain: Duration = 10.0  # the window in which all clients leave, each at its own time
    grace_period: Interval = 30.0  # after SIGTERM whoever runs this process kills it: all of the above has to fit

    # Who may do what.
    api_keys: Listed = Field(default=[], repr=False)  # the keys, or `sha256:<hex>` of them
    jwt_hmac_key: str | None = Field(default=None, repr=False)  # HS256; at least 32 bytes
    jwt_public_key: str | None = None  # PEM, or the path of a PEM file: RS256, ES256 or EdDSA, fixed by the key
    jwks_url: Listed = []
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_leeway: Duration = 30.0
    jwt_require_exp: bool = True  # refuse a token that never expires
    jwt_cookie: str | None = None  # the cookie that holds the token
    token_in_query: bool = False  # `?token=` ends up in logs and histories; off unless asked for
    allowed_origins: Listed = []  # scheme://host[:port], or `*`; the page's own origin is always allowed
    trusted_proxies: Listed = []  # addresses or networks whose X-Forwarded-For is believed
    ticket_ttl: Interval = 60.0  # of a `connect` ticket
    stream_ticket_ttl: Interval = 3600.0  # of a `stream` ticket, when none is asked for
    revocation_ttl: Annotated[Interval, Field(ge=1, le=30 * 86400)] = 30 * 86400.0  # at least what a token can live
    max_revocations: Annotated[int, Field(ge=1)] = 100_000  # users with one that holds

    # Presence, in namespaces that ask for it.
    presence_grace: Duration = 5.0  # how long a user whose last connection ended is still there
    presence_ttl: Interval = 30.0  # how long those of a node are that is not heard of
    presence_members: Annotated[int, Field(ge=1)] = 1000  # shown of a channel

    # What a channel keeps.
    channels: Annotated[dict[str, Policy], NoDecode] = {}
    partitions: Annotated[int, Field(ge=1, le=65536)] = 1024
    store_bytes: Size = 256 << 20  # memory:// only: logs and keys together
    idempotency_window: Duration = 300.0
    idempotency_bytes: Size = 64 << 20
    check_interval: Interval = 30.0
    jobs_keep: Interval = 86400.0  # how long the state of a job that has ended is held
    linger: Duration = 60.0  # how long a partition stays subscribed after its last local reader left

    native: bool = True  # take WebSockets, streams and publishes below ASGI; without it each costs a multiple

    # What one request, one connection and the process may use.
    max_message: Size = 64 << 10
    max_depth: Annotated[int, Field(ge=1, le=500)] = 64  # of nesting in `data`
    max_targets: Annotated[int, Field(ge=1)] = 1000  # channels or users of one publish
    max_channels: Annotated[int, Field(ge=1)] = 1000  # of one session
    max_connections: Annotated[int, Field(ge=1)] = 18000
    accept_rate: Annotated[int, Field(ge=1)] = 2000  # connections a second that this node takes; for 2 s more at once
    max_lag: Interval = 2.0  # of the event loop: while it comes later to what is due, nobody is let in
    connections_per_address: Annotated[int, Field(ge=1)] = 2000
    requests_per_second: Annotated[int, Field(ge=1)] = 2000  # per address
    failed_logins: Annotated[int, Field(ge=1)] = 100  # a burst per address; one more a second
    memory_budget: Size = 256 << 20  # recent messages and outboxes together
    recent_bytes: Size = 64 << 20
    outbox_bytes: Size = 256 << 10  # a session's; beyond it the session is lagging
    outbox_items: Annotated[int, Field(ge=1)] = 1000
    page_messages: Annotated[int, Field(ge=1)] = 100
    page_bytes: Size = 256 << 10
    reads: Annotated[int, Field(ge=1)] = 16  # pages read from the store at a time
    stuck_after: Interval = 60.0  # a connection that takes nothing for this long is closed with 4102
    heartbeat: Interval = 15.0
    connect_within: Interval = 5.0  # of a WebSocket's first frame, when nothing else authenticated it
    open_within: Interval = 10.0  # of everything a session needs from the store before its welcome
    poll_wait: Duration = 60.0  # the longest `wait` that is granted
    poll_interval: Duration = 0.0  # told to polling clients as Ringcast-Poll-Interval

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        return init_settings, env_settings

    def policy(self, channel: str) -> Policy:
        """The policy of a channel's namespace; the gateway's own tables are keyed and keep the newest values."""
        name = channel[: channel.index(":")]
        found = self.channels.get(name)
        if found is not None:
            return found
        if name in _OWN:
            return TABLE if name != "presence" else _members(self.presence_members)
        return self.channels.get("default", _DEFAULT)

    @model_validator(mode="before")
    @classmethod
    def _partitions_of_nats(cls, given: Any) -> Any:
        """On NATS each partition is two streams, which are dear: 64 are enough."""
        if isinstance(given, dict) and str(given.get("broker", "")).startswith(("nats://", "tls://")):
            return {"partitions": 64, **given}
        return given

    @field_validator("broker")
    @classmethod
    def _known_broker(cls, url: str) -> str:
        scheme = url.partition("://")[0]
        if scheme not in BROKERS or "://" not in url or (scheme == "memory" and url != "memory://"):
            raise ValueError("is not the URL of a broker; write memory://, redis://host:6379 or nats://host:4222")
        return url

    @field_validator("node")
    @classmethod
    def _speakable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("must be 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit")
        return name

    @field_validator("advertise")
    @classmethod
    def _reachable(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in url:
            raise ValueError("is not the address of a gateway; write for example https://gateway-1.example.com")
        return url.rstrip("/")

    @field_validator("api_keys")
    @classmethod
    def _usable_keys(cls, keys: list[str]) -> list[str]:
        for number, key in enumerate(keys, 1):
            if key.startswith("sha256:") and not re.fullmatch(r"sha256:[0-9a-f]{64}", key):
                raise ValueError(f"key {number} is not 'sha256:' and 64 lower-case hex digits")
            if not key.isascii() or not key.isprintable() or " " in key or not key:
                raise ValueError(f"key {number} cannot travel in a header: use letters, digits and signs, no spaces")
        return keys

    @field_validator("jwt_hmac_key")
    @classmethod
    def _long_enough(cls, key: str | None) -> str | None:
        if key is not None and len(key.encode()) < _KEY_BYTES:
            raise ValueError(f"has {len(key.encode())} bytes, at least {_KEY_BYTES} are needed; {MAKE_A_KEY} makes one")
        return key

    @field_validator("jwks_url")
    @classmethod
    def _web_addresses(cls, urls: list[str]) -> list[str]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is not an http:// or https:// URL")
        return urls

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        return [origin if origin == "*" else _origin(origin) for origin in origins]

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, networks: list[str]) -> list[str]:
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError(f"{network!r} is not an address or network such as 10.0.0.7 or 10.0.0.0/8") from None
        return networks

    @field_validator("channels")
    @classmethod
    def _namespaces(cls, policies: dict[str, Policy]) -> dict[str, Policy]:
        for name in policies:
            if name in _OWN:
                raise ValueError(f"the policy of {name!r} is the gateway's own and cannot be set")
            if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name):
                raise ValueError(f"{name!r} is not a namespace ([a-z][a-z0-9_-]*), the part of a channel before ':'")
        return policies

    @property
    def presence(self) -> bool:
        """Whether any namespace asks for it."""
        return any(policy.presence for policy in self.channels.values())

    @model_validator(mode="after")
    def _safe_together(self) -> Settings:
        needed = self.drain_wait + self.drain + ENDING
        if needed > self.grace_period:
            raise ValueError(
                f"drain_wait ({self.drain_wait:g}s), drain ({self.drain:g}s) and {ENDING:g}s for last words do not fit"
                f" in grace_period ({self.grace_period:g}s): set it to at least {needed:g}s, and what kills this"
                " process, such as Kubernetes' terminationGracePeriodSeconds, to the same"
            )
        if self.presence and self.presence_ttl < self.node_ttl + self.presence_grace:
            raise ValueError(
                f"presence_ttl ({self.presence_ttl:g}s) must be at least node_ttl and presence_grace together"
                f" ({self.node_ttl + self.presence_grace:g}s): else who comes back from a node that ended has left"
            )
        if self.jwt_cookie and "*" in self.allowed_origins:
            raise ValueError(
                "allowed_origins = '*' together with jwt_cookie would let every website act for your users;"
                " list the origins"
            )
        if not (_is_loopback(self.host) or self.api_keys or self.jwt_hmac_key or self.jwt_public_key or self.jwks_url):
            raise ValueError(
                f"serving on {self.host} without keys would let anyone in; set RINGCAST_API_KEYS or"
                f" RINGCAST_JWT_HMAC_KEY ({MAKE_A_KEY} makes a key), or serve on 127.0.0.1"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(origin: str) -> str:
    """An origin as browsers write it (RFC 6454): lower case, without the scheme's default port."""
    match = _ORIGIN.fullmatch(origin.lower())
    if not match:
        raise ValueError(f"{origin!r} is not an origin; write scheme://host[:port], like https://app.example.com")
    scheme, host, port = match.groups()
    default = {"http": "80", "https": "443"}.get(scheme)
    return f"{scheme}://{host}" if port in (None, default) else f"{scheme}://{host}:{port}"
