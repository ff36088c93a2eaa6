"""Which web pages may speak to the gateway: exact comparison of scheme, host and port (RFC 6454)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SAME = {"ws": "http", "wss": "https"}
# ASCII alone: browsers send the punycode of a name, and case folding of anything else invites look-alikes.
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?\Z")

Place = tuple[str, str, int | None]  # scheme, host, port


def parse_origin(origin: str) -> Place | None:
    """Scheme, host and port with the scheme's default filled in; None for `null` and whatever else is no origin."""
    match = _ORIGIN.match(origin)
    if match is None:
        return None
    scheme = _SAME.get(match[1].lower(), match[1].lower())
    return scheme, match[2].lower(), int(match[3]) if match[3] else _DEFAULT_PORTS.get(scheme)


class Origins:
    """The origins that are allowed beside a page's own."""

    def __init__(self, allowed: Iterable[str]) -> None:
        """Take `scheme://host[:port]` or `*`, as the settings have checked them."""
        allowed = set(allowed)
        self._any = "*" in allowed
        self._places = {place for place in map(parse_origin, allowed) if place is not None}

    def allowed(self, origin: str, host: str | None, scheme: str, *, wildcard: bool = True) -> bool:
        """Whether a page of `origin` may use the gateway that it reached as `host`, the Host header, by `scheme`.

        `wildcard=False` does not let the setting `*` count: where the browser adds by itself what lets the request
        pass (a cookie, being on this machine), only origins that were named may use it.
        """
        place = parse_origin(origin)
        if place is None:
            return False
        return place in self._places or (self._any and wildcard) or own_origin(origin, host, scheme)


def own_origin(origin: str, host: str | None, scheme: str) -> bool:
    """Whether a page of `origin` is the gateway's own, reached as `host` by `scheme`."""
    return host is not None and parse_origin(origin) == parse_origin(f"{scheme}://{host}") is not None


def is_loopback(host: str) -> bool:
    """Whether a host name or address, as in a setting or a Host header without its port, can only be this machine."""
    name = host.lower().removeprefix("[").removesuffix("]")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_is_loopback(host: str | None) -> bool:
    """Whether a Host header names this machine; DNS can point any other name here (rebinding)."""
    place = parse_origin(f"http://{host}") if host is not None else None
    return place is not None and is_loopback(place[1])
