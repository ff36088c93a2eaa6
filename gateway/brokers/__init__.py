"""The stores a node can stand on, by URL scheme. A new one is one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.brokers.base import Broker
    from gateway.settings import Settings

# Imported when wanted: a node needs the client library of its own store alone.
_BROKERS = {
    "memory": ("memory", "MemoryBroker"),
    "redis": ("redis", "RedisBroker"),
    "rediss": ("redis", "RedisBroker"),
    "redis+sentinel": ("redis", "RedisBroker"),
    "redis+cluster": ("redis", "RedisBroker"),
    "nats": ("nats", "NatsBroker"),
    "tls": ("nats", "NatsBroker"),
}


def open_broker(settings: Settings) -> Broker:
    """The broker of `settings.broker`, not yet connected. Raises ConfigError for a URL that cannot work."""
    module, name = _BROKERS[settings.broker.partition("://")[0]]
    broker: Broker = getattr(import_module(f"gateway.brokers.{module}"), name).open(settings)
    return broker
