from __future__ import annotations

import pytest

from gateway.origin import Origins, host_is_loopback, is_loopback, parse_origin


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "allowed"),
    [
        ("https://app.example", "rt.example", "https", True),  # named
        ("https://app.example:443", "rt.example", "https", True),
        ("HTTPS://APP.EXAMPLE", "rt.example", "https", True),
        ("http://app.example", "rt.example", "https", False),
        ("https://app.example:8443", "rt.example", "https", False),
        ("https://app.example.evil.example", "rt.example", "https", False),
        ("https://evil.app.example", "rt.example", "https", False),
        ("https://app.exampl\u212e", "rt.example", "https", False),
        ("https://app.example/", "rt.example", "https", False),
        ("https://app.example@evil.example", "rt.example", "https", False),
        ("https://user:app.example", "rt.example", "https", False),
        ("https://app.example https://evil.example", "rt.example", "https", False),
        ("https://rt.example", "rt.example", "https", True),  # its own
        ("https://rt.example", "rt.example:443", "wss", True),
        ("https://rt.example", "rt.example", "http", False),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "ws", True),
        ("http://127.0.0.1:8001", "127.0.0.1:8000", "ws", False),
        ("http://localhost:8000", "127.0.0.1:8000", "ws", False),
        ("http://[::1]:8000", "[::1]:8000", "http", True),
        ("http://rt.example", None, "http", False),
        ("http://rt.example", "rt.example/evil", "http", False),
        ("app://shell", "rt.example", "https", True),
        ("null", "null", "https", False),
        ("", "", "https", False),
        ("*", "rt.example", "https", False),
    ],
)
def test_an_origin_is_compared_exactly(origin: str, host: str | None, scheme: str, allowed: bool) -> None:
    assert Origins(["https://app.example", "app://shell"]).allowed(origin, host, scheme) is allowed


def test_the_wildcard_allows_every_page_but_null_and_counts_only_where_it_may() -> None:
    origins = Origins(["*"])
    assert origins.allowed("https://anyone.example", "rt.example", "https")
    assert not origins.allowed("null", "rt.example", "https")
    assert not origins.allowed("https://anyone.example", "rt.example", "https", wildcard=False)
    assert origins.allowed("https://rt.example", "rt.example", "https", wildcard=False)


def test_default_ports_are_filled_in() -> None:
    assert parse_origin("http://a.example") == ("http", "a.example", 80)
    assert parse_origin("wss://a.example") == ("https", "a.example", 443)
    assert parse_origin("app://a") == ("app", "a", None)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "app.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_names_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "localhost.evil.example", "rt.example", "127.1"])
def test_names_that_may_be_others(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost:8000", True), ("127.0.0.1", True), ("[::1]:8000", True), ("evil.example:8000", False),
        ("127.0.0.1.nip.example", False), ("localhost@evil.example", False), ("::1", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_only_a_host_header_that_names_this_machine_does(host: str | None, here: bool) -> None:
    assert host_is_loopback(host) is here
