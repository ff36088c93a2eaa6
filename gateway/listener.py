"""The port that a node serves on: held from the start, and listened at only when there is somebody to serve."""

from __future__ import annotations

import socket

from gateway.settings import ConfigError, Settings

UNSENT = 64 << 10  # bytes in the kernel beyond what is on its way; it would take megabytes, and pings wait behind them


def bind(settings: Settings) -> socket.socket:
    """A socket with the port, at which nobody listens yet: whoever connects is refused. Raises ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.workers > 1:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address[:2])
    except OSError as error:
        raise taken(settings, error) from None
    # Accepted connections inherit it: a peer that is gone is given up by the kernel too. So is one that takes nothing,
    # though it answers: we are to notice that first, and to say so.
    patience = 1000 * (2 * settings.heartbeat + settings.stuck_after)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience))
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    return bound


def taken(settings: Settings, error: OSError) -> ConfigError:
    """What a person is told of a port that cannot be had."""
    why = error.strerror or str(error)
    return ConfigError(f"cannot listen on {settings.host} port {settings.port}: {why}; choose another --port")


def url_of(bound: socket.socket, settings: Settings) -> str:
    host, port = bound.getsockname()[:2]
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
