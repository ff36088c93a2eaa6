"""The memory store's key tables and its table of ids."""

from __future__ import annotations

import pytest

from gateway.brokers.chain import Frame
from gateway.brokers.memory_store import MemoryStore
from gateway.errors import Problem
from gateway.message import Draft
from tests.support.stores import DAY, START, Clock, made, offsets, publish, read, recount


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    """One partition, so that every channel is in it."""
    return made(clock)


# ---------------------------------------------------------------- keys


def test_a_snapshot_is_the_newest_value_of_each_key(store: MemoryStore, clock: Clock) -> None:
    publish(store, "tab:a", "x")
    y, x = publish(store, "tab:a", "y"), publish(store, "tab:a", "x")
    snapshot = store.snapshot("tab:a")
    assert [m.offset for m in snapshot.messages] == [y, x]
    assert snapshot.offset == x
    publish(store, "tab:a", "y", deleted=True)
    assert [m.offset for m in store.snapshot("tab:a").messages] == [x]
    clock.wait(51)
    assert store.snapshot("tab:a").messages == [], "expired, though not swept yet"


def test_a_version_that_is_not_newer_is_refused(store: MemoryStore) -> None:
    offset = publish(store, "tab:a", "x", version=(2, 1))
    for version in ((2, 1), (2, 0), (1, 9, 9)):
        with pytest.raises(Problem) as refused:
            publish(store, "tab:a", "x", version=version)
        assert refused.value.code == "stale_version"
        assert refused.value.facts["current"] == {"offset": offset, "version": [2, 1]}
    assert publish(store, "tab:a", "x", version=(2, 1, 1)) > offset
    assert publish(store, "tab:a", "x") > offset, "without a version it replaces any"


def test_a_channel_holds_so_many_keys(store: MemoryStore) -> None:
    for key in "abc":
        publish(store, "tab:a", key)
    with pytest.raises(Problem, match="as many keys as it may") as refused:
        publish(store, "tab:a", "d")
    assert refused.value.code == "too_many_keys"
    publish(store, "tab:a", "a")
    publish(store, "tab:a", "a", deleted=True)
    publish(store, "tab:a", "d")
    publish(store, "tab:a", "e", deleted=True)  # deletions are bounded too, but refuse nothing
    for key in "fghi":
        publish(store, "tab:a", key, deleted=True)
    assert len(store.state.logs["tab:a"].keys) <= 6
    assert store.state.bytes == recount(store)


def test_a_slow_reader_of_a_table_gets_the_newest_value_though_the_log_has_left_it(store: MemoryStore) -> None:
    x = publish(store, "tab:a", "x")
    sent = [publish(store, "tab:a", "y") for _ in range(8)]
    page = read(store, START, "tab:a")
    assert (page.continuous, offsets(page)) == (True, [x, sent[-1]])


def test_a_slow_reader_of_a_table_is_told_of_unkeyed_messages_that_left(store: MemoryStore) -> None:
    plain = publish(store, "tab:a")
    for _ in range(8):
        publish(store, "tab:a", "y")
    assert not read(store, START, "tab:a").continuous
    assert read(store, plain, "tab:a").continuous


def test_a_slow_reader_of_a_log_with_keys_is_owed_every_value(store: MemoryStore) -> None:
    sent = [publish(store, "key:a", "y") for _ in range(8)]
    assert not read(store, START, "key:a").continuous
    assert offsets(read(store, sent[3], "key:a")) == sent[4:]


def test_an_expired_key_is_deleted_by_a_message(store: MemoryStore, clock: Clock) -> None:
    frames: list[Frame] = []
    store.listeners.append(frames.append)
    publish(store, "tab:a", "x", version=(3,))
    clock.wait(40)
    publish(store, "tab:a", "y")
    publish(store, "tab:a", "z", ttl=1000)
    clock.wait(11)
    store.sweep()
    assert [(f.message.key, f.message.deleted, f.message.version) for f in frames[3:]] == [("x", True, (3,))]
    clock.wait(40)
    store.sweep()
    assert [f.message.key for f in frames[3:]] == ["x", "y"]
    assert [m.key for m in store.snapshot("tab:a").messages] == ["z"]
    assert store.state.bytes == recount(store)


def test_a_key_that_is_written_again_lives_on(store: MemoryStore, clock: Clock) -> None:
    publish(store, "tab:a", "x")
    clock.wait(40)
    again = publish(store, "tab:a", "x")
    clock.wait(40)
    store.sweep()
    assert [m.offset for m in store.snapshot("tab:a").messages] == [again]
    publish(store, "tab:a", "x", ttl=1)
    clock.wait(2)
    store.sweep()
    assert store.snapshot("tab:a").messages == []


def test_a_forgotten_deletion_shows_no_position_before_it(store: MemoryStore, clock: Clock) -> None:
    before = publish(store, "old:a", "x")
    clock.wait(1)
    gone = publish(store, "old:a", "x", deleted=True)
    for _ in range(2):
        publish(store, "old:a", "y", ttl=7 * DAY)
    assert read(store, before, "old:a").continuous, "the key table still has it"
    clock.wait(DAY + 1)
    store.sweep()
    assert not read(store, before, "old:a").continuous
    assert read(store, gone, "old:a").continuous


def test_a_channel_that_is_let_go_of_forgets_no_deletion(clock: Clock) -> None:
    store = made(clock, store_bytes=3500)
    before = publish(store, "old:a", "x")
    clock.wait(1)
    publish(store, "old:a", "x", deleted=True)
    clock.wait(DAY + 1)
    store.sweep()
    publish(store, "old:b", data=b"x" * 1000)  # more than the store may hold
    assert "old:a" not in store.state.logs
    assert not read(store, before, "old:a").continuous


def test_a_channel_is_not_swept_before_its_last_deletion_is_older_than_retention(clock: Clock) -> None:
    store = made(clock, store_bytes=5000)
    publish(store, "old:a", "x", ttl=20 * DAY)
    clock.wait(10 * DAY)
    before = publish(store, "old:b")
    clock.wait(1)
    publish(store, "old:a", "x", deleted=True)
    publish(store, "old:b", data=b"x" * 1000)  # more than the store may hold: old:a keeps its key alone
    assert not store.state.logs["old:a"].entries
    for days in (2, 19):
        clock.wait(days * DAY)
        store.sweep()
    assert not read(store, before, "old:a").continuous


# ---------------------------------------------------------------- idempotency


def test_a_repeated_id_returns_the_first_offset_and_stores_nothing(store: MemoryStore) -> None:
    draft = Draft("log:a", "e", b"1", "id", principal="p", idempotent=True)
    first = store.publish(draft)
    again = store.publish(draft)
    assert (again.offset, first.duplicate, again.duplicate) == (first.offset, False, True)
    assert len(read(store, START).messages) == 1
    with pytest.raises(Problem) as refused:
        store.publish(Draft("log:a", "e", b"2", "id", principal="p", idempotent=True))
    assert refused.value.code == "id_reused"
    for other in (Draft("log:b", "e", b"2", "id", principal="p", idempotent=True),
                  Draft("log:a", "e", b"2", "id", principal="q", idempotent=True)):  # fmt: skip
        assert not store.publish(other).duplicate


def test_an_id_may_be_used_again_after_the_window(store: MemoryStore, clock: Clock) -> None:
    draft = Draft("log:a", "e", b"1", "id", idempotent=True)
    first = store.publish(draft)
    clock.wait(301)
    again = store.publish(draft)
    assert not again.duplicate
    assert again.offset > first.offset
    assert len(store.state.ids) == 1


def test_ids_are_counted_once_when_the_clock_goes_back(store: MemoryStore, clock: Clock) -> None:
    store.publish(Draft("log:a", "e", b"1", "one", idempotent=True))
    clock.wait(-20)
    store.publish(Draft("log:a", "e", b"1", "two", idempotent=True))
    charged = store.state.ids.bytes
    clock.wait(310)  # `two` has expired and `one`, before it, has not
    store.publish(Draft("log:a", "e", b"1", "two", idempotent=True))
    assert store.state.ids.bytes == charged
    clock.wait(310)
    store.publish(Draft("log:a", "e", b"1", "three", idempotent=True))
    assert len(store.state.ids) == 1


def test_a_full_table_of_ids_refuses_and_evicts_nothing_early(clock: Clock) -> None:
    store = made(clock, idempotency_bytes=1000)
    for number in range(3):
        store.publish(Draft("log:a", "e", b"1", str(number), idempotent=True))
    with pytest.raises(Problem) as refused:
        store.publish(Draft("log:a", "e", b"1", "3", idempotent=True))
    assert refused.value.code == "ids_full"
    assert store.publish(Draft("log:a", "e", b"1", "0", idempotent=True)).duplicate
