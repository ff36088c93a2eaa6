"""Where a subscriber connects next: decisions without a connection."""

from __future__ import annotations

import pytest

from gateway.client.place import LEFT, Place
from gateway.errors import DRAINING, FORBIDDEN, TOKEN_EXPIRED

URL = "https://gateway.example"
HOME = "https://one.gateway.example"
OTHER = "https://two.gateway.example"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def place(clock: Clock) -> Place:
    return Place(URL, clock=clock)


def test_a_home_is_where_the_next_connection_goes_and_stays_while_it_names_no_other(place: Place) -> None:
    assert (place.now, place.partition) == (URL, None)
    place.told(URL, 417, HOME)
    assert (place.now, place.partition) == (HOME, 417)
    place.told(HOME, 417, None)
    assert place.now == HOME
    place.told(HOME, 417, OTHER)
    assert place.now == OTHER
    place.told(URL, None, None)
    assert (place.now, place.partition) == (URL, 417), "the given address is as good a place as any, says the gateway"


def test_a_home_that_fails_is_left_at_once_and_for_a_while(place: Place, clock: Clock) -> None:
    place.told(URL, 417, HOME)
    place.leave(HOME)
    assert place.now == URL
    place.told(URL, 417, HOME)
    assert place.now == URL
    place.told(URL, 417, OTHER)
    assert place.now == OTHER
    clock.now += LEFT
    place.told(URL, 417, HOME)
    assert place.now == HOME


@pytest.mark.parametrize(("code", "again"), [(DRAINING, HOME), (TOKEN_EXPIRED, HOME), (FORBIDDEN, URL), (None, URL)])
def test_one_that_only_drains_or_wants_a_newer_token_may_be_named_again(
    place: Place, code: int | None, again: str
) -> None:
    place.told(URL, 417, HOME)
    place.leave(HOME, code)
    assert place.now == URL
    place.told(URL, 417, HOME)
    assert place.now == again


def test_the_goodbye_of_another_node_does_not_concern_the_home(place: Place) -> None:
    place.told(URL, 417, HOME)
    place.forget(URL)
    assert place.now == HOME
    place.forget(HOME)
    assert place.now == URL


@pytest.mark.parametrize("home", [
    "https://gateway.example", "https://gateway.example:8443", "https://one.gateway.example/ringcast",
    "https://a.b.gateway.example", "https://One.Gateway.example", "https://node.elsewhere.example", "https://deep.in.more.example:1",
])  # fmt: skip
def test_a_token_may_go_to_the_host_itself_and_below_it_and_where_it_is_said(home: str) -> None:
    assert Place(URL, homes=["node.elsewhere.example", "*.more.example"]).accepts(home)


@pytest.mark.parametrize("home", [
    "http://gateway.example", "http://one.gateway.example", "ws://gateway.example", "javascript:alert(1)", "", "/v1",
    "https://evil.example", "https://gateway.example.evil.example", "https://evilgateway.example", "https://example",
    "https://gateway.example@evil.example", "https://evil.example/gateway.example", "https://a:b@gateway.example",
    "https://evil.example\\@gateway.example", "https://evil.example\\.gateway.example", "https://gateway.example?x=y",
    "https://gateway.example#x", "https://gateway.example\n", "https://evil.example%2f.gateway.example",
    "https://evil.example#.gateway.example", "https://ｇateway.example",
    "https://gateway.example:65536", "https://a..gateway.example", f"https://{'x' * 64}.gateway.example",
    f"https://{'x.' * 130}gateway.example", "https://.gateway.example",
    "https://more.example", "https://x.node.elsewhere.example", f"https://gateway.example/{'x' * 3000}",
])  # fmt: skip
def test_it_goes_nowhere_else_and_never_loses_its_tls(home: str) -> None:
    place = Place(URL, homes=["node.elsewhere.example", "*.more.example"])
    assert not place.accepts(home)
    place.told(URL, 1, home)
    assert place.now == URL


def test_other_ports_are_the_same_host_and_below_an_address_there_is_nothing() -> None:
    place = Place("http://127.0.0.1:8000")
    assert place.accepts("http://127.0.0.1:8001")
    assert not place.accepts("https://127.0.0.1"), "another scheme"
    assert not place.accepts("http://evil.127.0.0.1")
    assert Place("http://[::1]:8000").accepts("http://[::1]:8001")


@pytest.mark.parametrize("pattern", ["*", "https://a.example", "a.*.example", "a.example:80", ""])
def test_patterns_that_cannot_be_meant_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="homes are hosts"):
        Place(URL, homes=[pattern])
