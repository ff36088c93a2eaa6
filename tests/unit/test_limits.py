from __future__ import annotations

import pytest

from gateway.errors import Problem
from gateway.limits import Buckets, Limits
from gateway.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(call: object, *args: str) -> float | None:
    with pytest.raises(Problem) as refusal:
        call(*args)  # type: ignore[operator]
    assert refusal.value.code == "rate_limited"
    return refusal.value.retry_after


def test_a_bucket_holds_its_burst_and_refills_with_its_rate() -> None:
    clock = Clock()
    bucket = Buckets(2.0, 3, clock)
    assert [bucket.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert bucket.wait("b") == bucket.take("b") == 0
    clock.now += 0.5
    assert bucket.wait("a") == 0
    assert [bucket.take("a") for _ in range(2)] == [0, 0.5]
    clock.now += 1e6
    assert [bucket.take("a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_a_refused_take_takes_nothing() -> None:
    clock = Clock()
    bucket = Buckets(1.0, 1, clock)
    bucket.take("a")
    for _ in range(1000):
        assert bucket.take("a") == 1.0
    clock.now += 1.0
    assert bucket.take("a") == 0


def test_memory_is_bounded_and_the_least_recently_used_is_forgotten() -> None:
    bucket = Buckets(1.0, 1, Clock(), capacity=100)
    bucket.take("first")
    for n in range(99):
        bucket.take(f"other {n}")
    assert bucket.take("first") > 0
    for n in range(10_000):
        bucket.take(f"yet another {n}")
    assert len(bucket) == 100
    assert bucket.take("first") == 0


def test_requests_are_limited_by_address() -> None:
    clock = Clock()
    limits = Limits(Settings(requests_per_second=2), clock)
    for address in ("192.0.2.1", "192.0.2.2"):
        limits.request(address)
        limits.request(address)
        assert refused(limits.request, address) == 1  # whole seconds
    clock.now += 0.5
    limits.request("192.0.2.1")


def test_failed_logins_shut_an_address_out_until_one_is_forgiven() -> None:
    clock = Clock()
    limits = Limits(Settings(failed_logins=3), clock)
    for _ in range(3):
        limits.check_logins("192.0.2.1")
        limits.check_logins("192.0.2.1")  # asking counts nothing
        limits.failed_login("192.0.2.1")
    assert refused(limits.check_logins, "192.0.2.1") == 1
    limits.check_logins("192.0.2.2")
    clock.now += 1.0
    limits.check_logins("192.0.2.1")


def test_connections_are_limited_by_address_and_forgotten_when_they_end() -> None:
    limits = Limits(Settings(connections_per_address=2), Clock())
    limits.connect("192.0.2.1")
    limits.connect("192.0.2.1")
    limits.connect("192.0.2.2")
    assert refused(limits.connect, "192.0.2.1")
    limits.disconnect("192.0.2.1")
    limits.connect("192.0.2.1")
    for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        limits.disconnect(address)
    assert not limits._connections


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:DB8::1", "2001:db8::2", True),
    ],
)
def test_an_ipv6_customer_is_a_64(one: str, other: str, same: bool) -> None:
    limits = Limits(Settings(connections_per_address=1), Clock())
    limits.connect(one)
    if same:
        refused(limits.connect, other)
    else:
        limits.connect(other)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("203.0.113.9", "192.0.2.1", "203.0.113.9"),  # anybody can send the header
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "1.1.1.1, 192.0.2.1", "192.0.2.1"),  # the left was made up by the client
        ("10.0.0.1", "1.1.1.1, 192.0.2.1, 10.9.9.9, 2001:db8:1::7", "192.0.2.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "192.0.2.1:41234", "192.0.2.1"),
        ("10.0.0.1", "[2001:db8::7]:41234", "2001:db8::7"),
        ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", "192.0.2.1, unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", ",,,", "10.0.0.1"),
        ("::ffff:10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("2001:db8:1::1", "192.0.2.1", "192.0.2.1"),
        ("", "192.0.2.1", ""),
        ("10.0.0.1", "1.1.1.1," + "10.0.0.2," * 5000 + "10.0.0.2", "10.0.0.2"),
    ],
)
def test_the_forwarded_address_counts_only_from_trusted_proxies(
    peer: str, forwarded_for: str | None, address: str
) -> None:
    limits = Limits(Settings(trusted_proxies=["10.0.0.0/8", "2001:db8:1::/48"]), Clock())
    assert limits.address(peer, forwarded_for) == address
