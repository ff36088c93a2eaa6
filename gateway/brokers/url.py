"""The parts of a broker's URL, which may name several hosts with commas between.

`urllib.parse.urlsplit` does not do for that: newer Pythons, and older ones that Debian has mended, refuse a bracketed
IPv6 address behind another host.
"""

from __future__ import annotations

from typing import NamedTuple


class Parts(NamedTuple):
    scheme: str
    netloc: str
    path: str  # with its leading slash, where there is one
    query: str


def split(url: str) -> Parts:
    """`scheme://netloc/path?query`; every text has such parts, though some may be empty."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    netloc, slash, path = rest.partition("/")
    return Parts(scheme.lower(), netloc, slash + path, query)
