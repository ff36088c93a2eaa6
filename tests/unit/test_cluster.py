"""One node's view of all: who is in it, until when, and who is on the ring."""

from __future__ import annotations

import msgspec
import pytest

from gateway.auth import Authenticator
from gateway.brokers.memory import MemoryBroker
from gateway.brokers.memory_store import MemoryStore
from gateway.cluster import ACCEPT_RATE, MISSED, Cluster, Member, State, View
from gateway.metrics import Metrics
from gateway.node import Node
from gateway.settings import Settings

TTL = 6.0


def member(state: State = "active", partitions: int = 64, address: str | None = None) -> Member:
    return Member(state, partitions, "0.1.0", address, 100)


def told(state: State = "active", partitions: int = 64) -> bytes:
    return msgspec.json.encode(member(state, partitions))


def ring(view: View) -> list[str]:
    return list(view.ring.members)


@pytest.fixture
def view() -> View:
    return View("a", member(), TTL)


def test_a_node_is_on_its_own_ring_while_it_is_active() -> None:
    view = View("a", member("joining"), TTL)
    assert ring(view) == []
    view.become(member("active"))
    assert ring(view) == ["a"]
    view.become(member("draining"))
    assert ring(view) == []
    assert view.members["a"].state == "draining"


def test_what_the_others_take_is_shared_by_all_that_drain(view: View) -> None:
    """A node that joins takes nobody yet; of one that does not say what it takes a usual figure is taken."""
    assert view.budget() == 0
    for name, rate in (("b", 500), ("c", 300)):
        view.heard(name, msgspec.json.encode(Member("active", 64, "0.1.0", accept_rate=rate)), False, 0.0)
    view.heard("d", msgspec.json.encode(Member("joining", 64, "0.1.0", accept_rate=5000)), False, 0.0)
    assert view.budget() == 800
    view.become(member("draining"))
    assert view.budget() == 800
    view.heard("e", told("draining"), False, 0.0)
    assert view.budget() == 400
    view.heard("f", b'{"state":"active","partitions":64,"release":"0.0.9"}', False, 0.0)
    assert view.budget() == (800 + ACCEPT_RATE) / 2
    view.expire(TTL)
    assert view.budget() == 0


def test_two_nodes_that_heard_of_each_other_have_one_hash(view: View) -> None:
    other = View("b", member(), TTL)
    assert view.ring.hash != other.ring.hash
    view.heard("b", told(), False, 0.0)
    other.heard("a", told(), False, 50.0)  # whatever its clock says
    assert view.ring.hash == other.ring.hash
    assert [view.ring.home(p) for p in range(64)] == [other.ring.home(p) for p in range(64)]


def test_a_silent_node_is_given_up_after_its_ttl_and_not_before(view: View) -> None:
    view.heard("b", told(), False, 10.0)
    view.heard("c", told(), False, 11.0)
    assert view.next_expiry == 16.0
    view.expire(15.9)
    assert ring(view) == ["a", "b", "c"]
    view.expire(16.0)
    assert ring(view) == ["a", "c"]
    assert set(view.members) == {"a", "c"}
    assert view.next_expiry == 17.0


def test_each_word_of_a_node_counts_from_when_it_was_heard(view: View) -> None:
    view.heard("b", told(), False, 0.0)
    view.heard("b", told(), False, 5.0)
    view.expire(10.9)
    assert "b" in view.members
    view.expire(11.0)
    assert "b" not in view.members


def test_a_node_expires_by_the_clock_here_though_the_store_still_holds_it(view: View) -> None:
    view.heard("b", told(), False, 0.0)
    view.expire(TTL)
    assert ring(view) == ["a"]
    assert view.next_expiry is None


def test_a_draining_node_is_known_and_off_the_ring_and_a_deleted_one_is_gone(view: View) -> None:
    view.heard("b", told(), False, 0.0)
    view.heard("b", told("draining"), False, 1.0)
    assert ring(view) == ["a"]
    assert view.members["b"].state == "draining"
    view.heard("b", b"null", True, 2.0)
    assert set(view.members) == {"a"}
    assert view.next_expiry is None


@pytest.mark.parametrize("lie", [told("draining"), b"null", b"{}"])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_node_believes_nothing_of_itself_that_it_hears(view: View, lie: bytes, deleted: bool) -> None:
    before = dict(view.members)
    view.heard("a", lie, deleted, 0.0)
    view.expire(1000.0)
    assert view.members == before
    assert ring(view) == ["a"]


@pytest.mark.parametrize("data", [b"null", b"[]", b"{}", b'{"state":"resting","partitions":64,"release":"9"}', b"\xff"])
def test_what_cannot_be_read_takes_a_node_out_and_breaks_nothing(view: View, data: bytes) -> None:
    view.heard("b", told(), False, 0.0)
    view.heard("b", data, False, 1.0)
    assert set(view.members) == {"a"}
    assert view.next_expiry is None


def test_fields_of_a_later_version_are_passed_over(view: View) -> None:
    later = {**msgspec.to_builtins(member()), "mood": "fine"}
    view.heard("b", msgspec.json.encode(later), False, 0.0)
    assert ring(view) == ["a", "b"]


def test_a_node_knows_when_it_last_heard_itself(view: View) -> None:
    view.heard("b", told(), False, 1.0)
    assert view.echoed_at < 0
    view.heard("a", told(), False, 2.0)
    assert view.echoed_at == 2.0


def test_a_node_with_other_partitions_is_known_and_has_none_of_them(view: View) -> None:
    view.heard("b", told(partitions=128), False, 0.0)
    assert "b" in view.members
    assert ring(view) == ["a"]


def test_a_refresh_draws_no_new_ring(view: View) -> None:
    view.heard("b", told(), False, 0.0)
    before = view.ring
    view.heard("b", told(), False, 1.0)
    view.become(member())
    assert view.ring is before


def cluster(broker: str) -> Cluster:
    settings = Settings(broker=broker, node="a", partitions=64)
    return Node(settings, MemoryBroker(MemoryStore(settings)), Authenticator(settings), Metrics()).cluster


def test_a_node_is_home_to_its_share_and_to_none_while_it_is_off_the_ring() -> None:
    one = cluster("redis://localhost")
    assert not any(map(one.is_home, range(64)))  # joining
    one.view.become(member())
    assert all(map(one.is_home, range(64)))
    one.view.heard("b", told(), False, 0.0)
    assert 0 < sum(map(one.is_home, range(64))) < 64
    ends = one._node.broker.homes()  # whose keys it ends
    assert list(ends) == [number for number in range(64) if one.is_home(number)]
    one.drain()
    assert not any(map(one.is_home, range(64)))


def test_a_node_that_is_alone_is_home_to_all_to_its_end() -> None:
    one = cluster("memory://")
    assert all(map(one.is_home, range(64)))
    one.drain()
    assert all(map(one.is_home, range(64)))


def test_who_fell_silent_is_missed_for_a_while_and_who_said_goodbye_is_not(view: View) -> None:
    view.heard("b", told(), False, 0.0)
    view.heard("c", told("draining"), False, 0.0)
    assert view.others(1.0) == {"b", "c"}
    view.heard("c", b"null", True, 2.0)
    view.expire(TTL)
    assert set(view.members) == {"a"}
    assert view.others(TTL) == {"b"}
    assert view.others(TTL + MISSED) == set()
    view.heard("b", told(), False, TTL + 1.0)
    view.heard("b", b"null", True, TTL + 2.0)
    assert view.others(TTL + 2.0) == set()
