from __future__ import annotations

import contextlib
import copy
import random

import pytest

from gateway.brokers.chain import Claim, Frame
from gateway.brokers.memory_store import TAKEOVERS, MemoryStore
from gateway.errors import Problem
from tests.support.stores import DAY, POLICIES, SECOND, START, Clock, made, offsets, publish, read, recount, take_over


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    """One partition, so that every channel is in it."""
    return made(clock)


# ---------------------------------------------------------------- offsets and frames


def test_an_offset_is_the_time_raised_above_the_highest_of_its_partition(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    assert publish(store) == START + SECOND
    assert publish(store, "log:b") == START + SECOND + 1
    clock.now -= 5 * SECOND
    assert publish(store) == START + SECOND + 2


def test_every_message_is_announced_with_the_offset_before_it_and_its_history(store: MemoryStore, clock: Clock) -> None:
    frames: list[Frame] = []
    store.listeners.append(frames.append)
    clock.wait(1)
    first, second = publish(store), publish(store, "log:b")
    assert [(f.before, f.message.offset, f.history) for f in frames] == [
        (START, first, store.history),
        (first, second, store.history),
    ]


# ---------------------------------------------------------------- what a log shows


def test_a_reader_goes_on_where_it_was(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    first, second, third = publish(store), publish(store), publish(store)
    page = read(store, first)
    assert (page.continuous, offsets(page), page.more, page.reached) == (True, [second, third], False, third)
    assert read(store, third).continuous
    assert read(store, START).continuous, "nothing was before the store began"


def test_a_page_is_bounded_by_messages_and_bytes(store: MemoryStore, clock: Clock) -> None:
    sent = [publish(store, data=b"x" * 1000) for _ in range(4)]
    page = read(store, START, limit=3)
    assert (offsets(page), page.more, page.reached) == (sent[:3], True, sent[2])
    small = made(clock, page_bytes=1)
    first = publish(small)
    publish(small)
    page = read(small, START)
    assert (offsets(page), page.more) == ([first], True), "one message at least"


def test_what_left_by_size_is_not_shown(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    sent = [publish(store) for _ in range(7)]
    page = read(store, sent[0])
    assert (page.continuous, page.reason, page.start, offsets(page)) == (False, "trimmed", sent[0], sent[2:])
    assert read(store, sent[1]).continuous, "the entry after it names it as the one before"
    assert read(store, sent[2]).continuous


def test_what_left_by_bytes_is_not_shown(store: MemoryStore, clock: Clock) -> None:
    sent = [publish(store, "big:a", data=b"x" * 200) for _ in range(3)]
    assert offsets(read(store, START, "big:a")) == sent[1:]
    assert read(store, sent[0], "big:a").continuous
    assert not read(store, START, "big:a").continuous
    huge = publish(store, "big:a", data=b"x" * 5000)
    assert offsets(read(store, sent[2], "big:a")) == [huge], "the newest stays, however large"


def test_what_left_by_age_is_not_shown_even_when_the_channel_is_forgotten(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    sent = publish(store)
    clock.wait(101)
    assert not read(store, sent - 1).continuous
    assert read(store, sent).continuous
    clock.wait(100)
    assert store.sweep() is False
    assert store.state.logs == {}
    assert store.state.bytes == 0
    assert not read(store, sent - 1).continuous
    assert read(store, sent).continuous, "nothing came since"


def test_a_quiet_channel_shows_what_is_not_older_than_retention(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1000)
    publish(store, "log:busy")
    assert not read(store, clock.now - 101 * SECOND, "log:quiet").continuous
    assert read(store, clock.now - 99 * SECOND, "log:quiet").continuous


def test_a_position_that_was_never_issued_is_unknown(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    sent = publish(store)
    page = read(store, sent + 1)
    assert (page.continuous, page.reason, page.start, page.reached) == (False, "unknown", sent, sent)


def test_a_page_says_where_what_it_holds_begins(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    sent = [publish(store) for _ in range(7)]
    assert read(store, sent[3]).begins == sent[3]
    assert read(store, START).begins == sent[2] - 1
    assert read(store, sent[6] + 5).begins == sent[6]
    proof = read(store, START).proof()
    assert (proof.continuous, proof.start, proof.reached, proof.messages) == (False, START, sent[2] - 1, [])


# ---------------------------------------------------------------- what a store loses


def test_a_clean_restart_resets_nobody(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    sent = publish(store)
    history = take_over(store, store.state)
    assert store.check(0, [Claim(sent, history, 0)]) == (sent, store.history)
    assert read(store, sent).continuous


def test_a_store_that_lost_its_tail_is_found_out_by_who_saw_it(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    kept = publish(store)
    state = copy.deepcopy(store.state)
    clock.wait(1)
    lost = publish(store)
    history = take_over(store, state)
    assert store.check(0, [Claim(kept, history, 0)]) == (kept, store.history)
    top, _ = store.check(0, [Claim(kept, history, 0), Claim(lost, history, 0)])
    assert top == max(lost + 1, clock.now)
    page = read(store, kept)
    assert (page.continuous, page.reason) == (False, "lost")
    assert publish(store) > top


def test_the_next_witness_of_the_same_loss_raises_nothing(store: MemoryStore, clock: Clock) -> None:
    state = copy.deepcopy(store.state)
    clock.wait(1)
    lost = publish(store)
    history = take_over(store, state)
    first = store.check(0, [Claim(lost, history, 0)])
    clock.wait(1)
    assert store.check(0, [Claim(lost, history, 1_000_001)]) == first
    clock.wait(1)
    sent = publish(store)
    assert store.check(0, [Claim(lost, history, 2_000_001)]) == (sent, store.history)


def test_a_witness_of_what_was_acknowledged_since_raises_again(store: MemoryStore, clock: Clock) -> None:
    """The process that was replaced lives on, and its clock is behind: what it takes lies below what was told."""
    state = copy.deepcopy(store.state)
    clock.wait(1)
    lost = publish(store)
    later = lost + 10
    history = take_over(store, state)
    clock.wait(1)
    first, _ = store.check(0, [Claim(lost, history, 500_000)])
    assert later < first
    clock.wait(1)
    again, _ = store.check(0, [Claim(later, history, 900_000)])
    assert again == clock.now
    assert read(store, first).reason == "lost"
    assert store.check(0, [Claim(later, history, 100_000)]) == (again, store.history)


def test_how_long_ago_another_process_told_of_a_loss_is_not_known(store: MemoryStore, clock: Clock) -> None:
    state = copy.deepcopy(store.state)
    clock.wait(1)
    lost = publish(store)
    history = take_over(store, state)
    first, _ = store.check(0, [Claim(lost, history, 0)])
    take_over(store, store.state)
    clock.wait(-1)
    assert store.check(0, [Claim(lost, history, 500_000)])[0] > first


def test_a_floor_that_was_raised_for_want_of_room_hides_no_loss(clock: Clock) -> None:
    store = made(clock, store_bytes=500)
    clock.wait(1)
    state = copy.deepcopy(store.state)
    lost = publish(store)
    history = take_over(store, state)
    clock.wait(1)
    sent = publish(store, "log:b")  # there is no room even for its record
    assert read(store, START, "log:b").floor == sent > lost
    assert store.check(0, [Claim(lost, history, 0)])[0] > sent


def test_a_newer_message_does_not_hide_a_loss(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    publish(store)
    state = copy.deepcopy(store.state)
    clock.wait(1)
    lost = publish(store)
    history = take_over(store, state)
    clock.wait(1)
    sent = publish(store)
    assert sent > lost
    top, _ = store.check(0, [Claim(lost, history, 0)])
    assert top > sent
    assert not read(store, lost).continuous


def test_a_claim_of_a_process_that_was_never_heard_of_is_a_loss(store: MemoryStore, clock: Clock) -> None:
    top, _ = store.check(0, [])
    assert store.check(0, [Claim(top, "unheard of", 0)])[0] > top


def test_the_last_takeovers_are_remembered(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    sent = publish(store)
    first = take_over(store, store.state)
    for _ in range(TAKEOVERS - 1):
        store.check(0, [])
        take_over(store, store.state)
    assert store.check(0, [Claim(sent, first, 0)])[0] == sent
    take_over(store, store.state)
    assert store.check(0, [Claim(sent, first, 0)])[0] > sent


def test_a_wiped_store_shows_nothing_from_before(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    sent = publish(store)
    clock.wait(1)
    store.begin()
    page = read(store, sent)
    assert (page.continuous, page.reason, page.top) == (False, "lost", clock.now)


def test_no_offset_is_issued_twice(store: MemoryStore, clock: Clock) -> None:
    clock.wait(1)
    state = copy.deepcopy(store.state)
    issued = [publish(store) for _ in range(3)]
    clock.wait(0.001)
    take_over(store, state)
    issued += [publish(store) for _ in range(3)]
    clock.wait(0.001)
    store.begin()
    issued += [publish(store) for _ in range(3)]
    assert len(set(issued)) == 9


# ---------------------------------------------------------------- bounds


def test_past_its_bytes_the_store_lets_go_of_what_would_expire_first(clock: Clock) -> None:
    store = made(clock, store_bytes=4000)
    first = publish(store, "log:a")
    clock.wait(1)
    others = [publish(store, f"log:{name}") for name in "bc"]
    clock.wait(1)
    last = publish(store, "log:d")
    assert store.state.bytes <= 4000
    assert store.state.bytes == recount(store)
    page = read(store, first - 1, "log:a")
    assert not page.continuous, "what went before its time is not shown"
    assert [offsets(read(store, first, name)) for name in ("log:b", "log:c", "log:d")] == [
        [others[0]], [others[1]], [last]
    ]  # fmt: skip


def test_keys_stay_and_a_store_full_of_them_takes_no_more(clock: Clock) -> None:
    store = made(clock, store_bytes=3000)
    kept = [publish(store, f"tab:{name}", "x") for name in "ab"]
    with pytest.raises(Problem) as refused:
        publish(store, "tab:c", "x")
    assert refused.value.code == "store_full"
    assert [store.snapshot(f"tab:{name}").messages[0].offset for name in "ab"] == kept


def test_a_sweep_stops_when_it_has_done_enough(store: MemoryStore, clock: Clock) -> None:
    for number in range(5):
        publish(store, f"log:{number}")
    clock.wait(101)
    assert store.sweep(3) is True
    assert store.sweep(3) is False


def test_the_accounts_are_right_whatever_happens(clock: Clock) -> None:
    source = random.Random(7)
    store = made(clock, store_bytes=20_000)
    for _ in range(5000):
        clock.wait(source.choice([0, 0.1, 1, 20, 60, 3600]) if source.random() < 0.3 else 0)
        space = source.choice(list(POLICIES))
        key = source.choice("abcd") if space in ("tab", "key", "old") and source.random() < 0.7 else None
        with contextlib.suppress(Problem):  # too many keys, or no room for more
            publish(store, f"{space}:{source.randrange(4)}", key, data=b"x" * source.randrange(400),
                    deleted=key is not None and source.random() < 0.3)  # fmt: skip
        if source.random() < 0.1:
            store.sweep()
        assert store.state.bytes == recount(store)
    clock.wait(60 * DAY)
    for _ in range(4):
        store.sweep()
        clock.wait(60 * DAY)
    store.sweep()
    assert store.state.logs == {}
    assert store.state.bytes == 0
