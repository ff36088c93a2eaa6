"""A broker's URL in its parts."""

from __future__ import annotations

import pytest

from gateway.brokers.url import Parts, split


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("memory://", ("memory", "", "", "")),
        ("redis://host:6379/0?prefix=rc", ("redis", "host:6379", "/0", "prefix=rc")),
        ("REDIS+Sentinel://u:p@a:1,[::1]:2,c/main", ("redis+sentinel", "u:p@a:1,[::1]:2,c", "/main", "")),
        ("nats://[::1", ("nats", "[::1", "", "")),
        ("nats://a,b?replicas=3", ("nats", "a,b", "", "replicas=3")),
        ("nothing", ("nothing", "", "", "")),
    ],
)
def test_several_hosts_and_half_an_address_are_no_trouble(url: str, parts: tuple[str, str, str, str]) -> None:
    assert split(url) == Parts(*parts)
