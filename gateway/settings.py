"""Every setting with its default and unit: flags, then `RINGCAST_*` environment, then TOML; none unknown."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

CLIENT_VARIABLES = {"RINGCAST_URL", "RINGCAST_API_KEY", "RINGCAST_TOKEN", "RINGCAST_CONFIG"}
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def seconds(value: Any) -> Any:
    """Read a duration such as `250ms`, `30s`, `5m`, `24h`, `30d`; a bare number is seconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)?", value.strip())
        if not match:
            raise ValueError(f"{value!r} is not a duration; write for example 250ms, 30s, 5m or 24h")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


def size(value: Any) -> Any:
    """Read a size such as `64KiB`, `16MiB`; a bare number is bytes."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)\s*(KiB|MiB|GiB)?", value.strip())
        if not match:
            raise ValueError(f"{value!r} is not a size; write for example 65536, 64KiB or 16MiB")
        return int(match[1]) * _SIZES[match[2] or ""]
    return value


def listed(value: Any) -> Any:
    """Read a comma separated list; the environment and flags know no other."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
Size = Annotated[int, BeforeValidator(size), Field(ge=0)]
Listed = Annotated[list[str], NoDecode, BeforeValidator(listed)]


class Policy(BaseModel):
    """What a namespace's channels keep, and what a slow reader of them is owed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    history_size: Annotated[int, Field(ge=1)] = 1000  # messages a channel
    history_ttl: Duration = 900.0  # a message's age at most
    history_bytes: Annotated[Size, Field(ge=1)] = 16 << 20  # a channel's log at most
    keyed: bool = False
    key_ttl: Duration = 30 * 86400.0
    max_keys: Annotated[int, Field(ge=1)] = 1000
    presence: bool = False
    slow: Literal["catch_up", "latest"] = "catch_up"

    @field_validator("history_ttl")
    @classmethod
    def _at_least_a_second(cls, value: float) -> float:
        if value < 1:
            raise ValueError("history_ttl must be at least 1s")
        return value


TABLE = Policy(keyed=True, slow="latest")  # job state, presence, membership, revocations


class Settings(BaseSettings):
    """One node's settings, all checked at start."""

    model_config = SettingsConfigDict(env_prefix="RINGCAST_", extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    broker: str = "memory://"
    node: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    drain_wait: Duration = 5.0  # after leaving the ring, how long to serve as before
    drain: Duration = 10.0  # the window that goodbyes are spread over

    # Who may do what.
    api_keys: Listed = []  # the keys, or `sha256:<hex>` of them
    jwt_hmac_key: str | None = None  # HS256; at least 32 bytes
    jwt_public_key: str | None = None  # PEM, or the path of a PEM file: RS256, ES256 or EdDSA, fixed by the key
    jwks_url: Listed = []
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_leeway: Duration = 30.0
    jwt_cookie: str | None = None  # the cookie that holds the token
    token_in_query: bool = False  # `?token=` ends up in logs and histories; off unless asked for
    allowed_origins: Listed = []  # scheme://host[:port], or `*`; the page's own origin is always allowed
    trusted_proxies: Listed = []  # addresses or networks whose X-Forwarded-For is believed
    ticket_ttl: Duration = 60.0  # of a `connect` ticket
    stream_ticket_ttl: Duration = 3600.0  # of a `stream` ticket, when none is asked for

    # What a channel keeps.
    channels: dict[str, Policy] = {}
    partitions: Annotated[int, Field(ge=1, le=65536)] = 1024
    store_bytes: Size = 256 << 20  # memory:// only: logs and keys together
    idempotency_window: Duration = 300.0
    idempotency_bytes: Size = 64 << 20
    check_interval: Duration = 30.0
    linger: Duration = 60.0  # how long a partition stays subscribed after its last local reader left

    # What one request, one connection and the process may use.
    max_message: Size = 64 << 10
    max_depth: Annotated[int, Field(ge=1, le=500)] = 64  # of nesting in `data`
    max_targets: Annotated[int, Field(ge=1)] = 1000  # channels or users of one publish
    max_channels: Annotated[int, Field(ge=1)] = 1000  # of one session
    max_connections: Annotated[int, Field(ge=1)] = 18000
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
    stuck_after: Duration = 60.0  # a connection that takes nothing for this long is closed with 4102
    heartbeat: Duration = 15.0
    connect_within: Duration = 5.0  # of a WebSocket's first frame, when nothing else authenticated it
    open_within: Duration = 10.0  # of everything a session needs from the store before its welcome
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
        if name in ("jobs", "presence", "ringcast"):
            return TABLE
        return self.channels.get("default", _DEFAULT)


_DEFAULT = Policy()


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file. Raises OSError or tomllib.TOMLDecodeError."""
    with path.open("rb") as file:
        return tomllib.load(file)
