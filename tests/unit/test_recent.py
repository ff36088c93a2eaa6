from __future__ import annotations

import gc
import weakref

import pytest

from gateway.message import Message
from gateway.recent import Channel, LatestChannel, Partition, Recent

SIZE = 512 + 2 * 100  # what a message here counts


class Weak(Message, weakref=True, gc=True):
    """A message that a test can watch going away."""


def message(channel: str, offset: int, key: str | None = None) -> Message:
    return Weak(channel, offset, f"m{offset}", "e", b"x" * 100, 0, key)


@pytest.fixture
def partition() -> Partition:
    return Partition(0, 100)


def channel(partition: Partition, name: str = "topic:a", *, latest: bool = False) -> Channel:
    partition.channels[name] = made = (LatestChannel if latest else Channel)(name, partition)
    return made


def offsets(recent: Recent, channel: Channel, since: int) -> list[int]:
    return [message.offset for message in recent.after(channel, since)]


def test_it_gives_back_what_came_after_a_position(partition: Partition) -> None:
    recent, a = Recent(10 * SIZE), channel(partition)
    for offset in (101, 105, 109):
        recent.add(a, message("topic:a", offset))
    assert offsets(recent, a, 100) == [101, 105, 109]
    assert offsets(recent, a, 103) == [105, 109]
    assert offsets(recent, a, 109) == []
    assert (partition.whole, recent.bytes) == (100, 3 * SIZE)


def test_the_oldest_of_all_partitions_goes_first_and_raises_its_own_partition(partition: Partition) -> None:
    other = Partition(1, 50)
    recent, a, b = Recent(2 * SIZE), channel(partition), channel(other, "topic:b")
    assert recent.add(a, message("topic:a", 101)) == []
    assert recent.add(b, message("topic:b", 60)) == []
    assert recent.add(b, message("topic:b", 61)) == [a], "who holds nothing any more is named"
    assert (partition.whole, other.whole) == (101, 50)
    assert recent.add(a, message("topic:a", 102)) == []
    assert (partition.whole, other.whole) == (101, 60)
    assert recent.bytes == 2 * SIZE


def test_a_message_larger_than_the_bound_is_not_kept(partition: Partition) -> None:
    recent, a = Recent(SIZE - 1), channel(partition)
    assert recent.add(a, message("topic:a", 101)) == [a]
    assert (partition.whole, recent.bytes, offsets(recent, a, 101)) == (101, 0, [])


def test_it_holds_no_more_items_than_its_bytes_allow_for(partition: Partition) -> None:
    recent, a = Recent(512), channel(partition)
    for offset in range(101, 111):
        recent.add(a, Message("topic:a", offset, "m", "e", b"", 0))
    assert len(a.recent) == 1


def test_a_cleared_partition_is_let_go_of_and_disturbs_no_other(partition: Partition) -> None:
    other = Partition(1, 50)
    recent, a, b = Recent(3 * SIZE), channel(partition), channel(other, "topic:b")
    gone = weakref.ref(first := message("topic:a", 101))
    recent.add(a, first)
    recent.add(b, message("topic:b", 60))
    recent.clear(partition)
    partition.whole = 200
    del first
    gc.collect()
    assert gone() is None, "a cleared message is still held somewhere"
    assert recent.bytes == SIZE
    for offset in (201, 202, 203):
        recent.add(a, message("topic:a", offset))
    assert (partition.whole, other.whole) == (200, 60)
    assert offsets(recent, a, 200) == [201, 202, 203]


def test_a_slow_reader_of_a_table_is_given_the_newest_value_of_each_key(partition: Partition) -> None:
    recent, a = Recent(10 * SIZE), channel(partition, latest=True)
    for offset, key in ((101, "x"), (102, None), (103, "y"), (104, "x"), (105, None)):
        recent.add(a, message("topic:a", offset, key))
    assert offsets(recent, a, 100) == [102, 103, 104, 105]
    assert offsets(recent, a, 103) == [104, 105]


def test_a_channel_that_holds_nothing_has_nothing_of_its_own_and_shares_nothing_it_gets(partition: Partition) -> None:
    recent, a, b = Recent(2 * SIZE), channel(partition), channel(partition, "topic:b")
    assert a.recent is b.recent
    recent.add(a, message("topic:a", 101))
    assert (len(a.recent), len(b.recent)) == (1, 0)
    assert recent.add(b, message("topic:b", 102)) == []
    assert recent.add(b, message("topic:b", 103)) == [a]
    nothing = channel(partition, "topic:c").recent
    assert a.recent is nothing
    recent.clear(partition)
    assert b.recent is nothing
    assert (len(nothing), recent.bytes) == (0, 0)
