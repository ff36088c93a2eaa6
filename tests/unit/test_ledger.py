"""The ledger finds what is planted, and nothing else."""

from __future__ import annotations

import pytest

from tests.support.ledger import Loses, StoreLedger

NEWS, ROOM = "topic:news", "room:1"


def partition(channel: str) -> int:
    return len(channel)


@pytest.fixture
def ledger() -> StoreLedger:
    """Five messages, held, and two clients that are to see them all."""
    ledger = StoreLedger(partition)
    for client in ("ann", "bob"):
        ledger.began(client, NEWS, 10)
    for offset in (11, 12, 13, 14, 15):
        ledger.trying(NEWS, f"m{offset}")
        ledger.was_acknowledged(NEWS, offset, f"m{offset}", at=float(offset))
    hold(ledger)
    return ledger


def hold(ledger: StoreLedger, *lost: int) -> None:
    ledger.holds(NEWS, [(at, id) for at, id in ledger.acknowledged[NEWS].items() if at not in lost])


def see(ledger: StoreLedger, client: str, *offsets: int) -> None:
    for offset in offsets:
        ledger.saw(client, NEWS, offset, f"m{offset}", at=offset + 0.5)


def kinds(ledger: StoreLedger, loses: Loses = "nothing") -> set[tuple[str, str]]:
    return {(fault.kind, fault.client) for fault in ledger.verdict(loses)}


def test_nothing_is_found_where_everyone_saw_everything(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12, 13, 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert ledger.verdict("nothing") == []
    assert (ledger.published, ledger.deliveries, ledger.resets, ledger.gone()) == (5, 10, 0, 0)
    assert ledger.delays == [0.5] * 10


@pytest.mark.parametrize("missing", [11, 13, 15])
def test_a_message_that_one_client_missed_is_lost(ledger: StoreLedger, missing: int) -> None:
    see(ledger, "ann", *(offset for offset in range(11, 16) if offset != missing))
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert [(fault.kind, fault.client) for fault in ledger.verdict("nothing")] == [("lost", "ann")]
    assert str(missing) in str(ledger.missing()[0])


def test_what_the_store_holds_is_owed_behind_a_reset_too(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12)
    ledger.was_reset("ann", NEWS, 12, "lost", at=20)
    see(ledger, "ann", 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert ("lost", "ann") in kinds(ledger, "everything")


def test_what_was_published_before_a_client_began_is_not_owed(ledger: StoreLedger) -> None:
    ledger.began("ann", NEWS, 13)
    see(ledger, "ann", 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert ledger.verdict("nothing") == []


def test_a_message_that_came_twice_is_a_duplicate(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12, 13, 13, 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15, 11)
    assert kinds(ledger) == {("duplicated", "ann"), ("duplicated", "bob")}


def test_an_id_that_came_under_two_offsets_is_a_duplicate(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12, 13, 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    ledger.saw("ann", NEWS, 16, "m12", at=16)
    assert ("duplicated", "ann") in kinds(ledger, "some")


def test_a_retry_that_was_stored_anew_is_excused_where_the_first_is_gone_and_a_reset_told(ledger: StoreLedger) -> None:
    ledger.trying(NEWS, "retried")
    ledger.was_acknowledged(NEWS, 17, "retried", at=17)
    hold(ledger)
    for client in ("ann", "bob"):
        see(ledger, client, 11, 12, 13, 14, 15)
        ledger.saw(client, NEWS, 16, "retried", at=16)
        if client == "ann":
            ledger.was_reset(client, NEWS, 16, "lost", at=20)
        ledger.saw(client, NEWS, 17, "retried", at=17)
    assert kinds(ledger, "some") == {("duplicated", "bob")}


def test_an_older_message_after_a_newer_one_is_out_of_order(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12, 14, 13, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert kinds(ledger) == {("reordered", "ann")}


def test_a_message_from_before_the_beginning_is_out_of_order(ledger: StoreLedger) -> None:
    ledger.began("ann", NEWS, 11)
    see(ledger, "ann", 11, 12, 13, 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert kinds(ledger) == {("reordered", "ann")}


def test_a_gap_that_nobody_announced_is_found(ledger: StoreLedger) -> None:
    hold(ledger, 13)
    see(ledger, "ann", 11, 12)
    ledger.was_reset("ann", NEWS, 12, "lost", at=20)
    see(ledger, "ann", 14, 15)
    see(ledger, "bob", 11, 12, 14, 15)
    assert kinds(ledger, "some") == {("unannounced", "bob")}


def test_a_reset_that_came_before_the_lost_message_does_not_announce_it(ledger: StoreLedger) -> None:
    hold(ledger, 13)
    see(ledger, "ann", 11, 12)
    ledger.was_reset("ann", NEWS, 12, "lost", at=12.9)
    see(ledger, "ann", 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert ("unannounced", "ann") in kinds(ledger, "some")


def test_a_reset_announces_what_is_missing_behind_what_it_replays(ledger: StoreLedger) -> None:
    hold(ledger, 13)
    see(ledger, "ann", 11)
    ledger.was_reset("ann", NEWS, 11, "lost", at=20)
    see(ledger, "ann", 12, 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert kinds(ledger, "some") == set()


def test_a_reset_that_came_later_does(ledger: StoreLedger) -> None:
    hold(ledger, 13)
    see(ledger, "ann", 11, 12, 14, 15)
    ledger.was_reset("ann", NEWS, 15, "lost", at=20)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert kinds(ledger, "some") == set()


def test_a_lost_last_message_is_announced_by_a_reset_at_the_end(ledger: StoreLedger) -> None:
    hold(ledger, 15)
    see(ledger, "ann", 11, 12, 13, 14)
    see(ledger, "bob", 11, 12, 13, 14)
    ledger.was_reset("bob", NEWS, 14, "lost", at=20)
    assert kinds(ledger, "some") == {("unannounced", "ann")}


def test_a_reset_is_needless_where_nothing_of_the_partition_was_lost(ledger: StoreLedger) -> None:
    ledger.began("bob", ROOM, 10)
    see(ledger, "ann", 11, 12, 13, 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    ledger.was_reset("ann", NEWS, 15, "unknown", at=20)
    ledger.was_reset("bob", ROOM, 10, "lost", at=20)
    assert kinds(ledger) == {("needless", "ann"), ("needless", "bob")}
    assert kinds(ledger, "everything") == set()
    hold(ledger, 13)
    assert kinds(ledger, "some") == {("needless", "bob")}


def test_a_store_that_lost_what_it_must_not_is_found(ledger: StoreLedger) -> None:
    hold(ledger, 13)
    see(ledger, "ann", 11, 12, 13, 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert kinds(ledger) == {("lost", "")}
    assert kinds(ledger, "some") == set()
    assert ledger.gone() == 1


def test_an_offset_that_was_given_twice_is_found(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12, 13, 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    ledger.trying(NEWS, "other")
    ledger.was_acknowledged(NEWS, 13, "other", at=13)
    assert ("reissued", "") in kinds(ledger)


def test_a_message_that_nobody_published_is_found(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12, 13, 14, 15, 16)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    assert ("invented", "ann") in kinds(ledger)


def test_a_client_that_gave_up_is_found(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12, 13, 14, 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    ledger.ended("bob", "refused")
    assert kinds(ledger) == {("ended", "bob")}


def test_below_the_reset_of_a_torn_store_is_what_a_client_cannot_be_sent(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12)
    ledger.was_reset("ann", NEWS, 14, "lost", at=20)
    see(ledger, "ann", 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    hold(ledger, 12)
    assert kinds(ledger, "torn") == set()
    assert kinds(ledger, "some") == {("lost", "ann")}


def test_a_reset_from_before_or_below_excuses_nothing_of_a_torn_store(ledger: StoreLedger) -> None:
    see(ledger, "ann", 11, 12)
    ledger.was_reset("ann", NEWS, 14, "lost", at=12.7)  # before 13 was acknowledged
    ledger.was_reset("ann", NEWS, 13, "lost", at=20)  # below 14
    see(ledger, "ann", 15)
    see(ledger, "bob", 11, 12, 13, 14, 15)
    hold(ledger, 12)
    assert [fault.what for fault in ledger.verdict("torn") if fault.kind == "lost"] == ["14 m14"]


def test_what_a_torn_store_tells_twice_is_excused_behind_a_reset_below_it(ledger: StoreLedger) -> None:
    see(ledger, "bob", 11, 12, 13, 14, 15)
    see(ledger, "ann", 11, 12, 13, 14)
    ledger.was_reset("ann", NEWS, 12, "unknown", at=20)
    see(ledger, "ann", 13, 14, 15)
    hold(ledger, 12)
    assert kinds(ledger, "torn") == set()
    assert ("duplicated", "ann") in kinds(ledger, "some")
    see(ledger, "bob", 15)
    assert kinds(ledger, "torn") == {("duplicated", "bob")}
