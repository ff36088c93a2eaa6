from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gateway.brokers import chain as module
from gateway.brokers.chain import Chain, Frame
from gateway.message import Message

P = 7  # the partition
OLD, NEW = "old", "new"  # histories


@dataclass
class Heard:
    told: list[tuple[str, int]] = field(default_factory=list)

    def message(self, partition: int, message: Message) -> None:
        self.told.append(("message", message.offset))

    def watermark(self, partition: int, offset: int) -> None:
        self.told.append(("watermark", offset))

    def gap(self, partition: int, offset: int) -> None:
        self.told.append(("gap", offset))

    def since(self) -> list[tuple[str, int]]:
        """What was told since the last look."""
        told, self.told = self.told, []
        return told


def frame(before: int, offset: int, history: str = OLD, *, sure: bool = True) -> Frame:
    return Frame(P, before, history, Message("topic:a", offset, f"m{offset}", "e", b"1", 0), sure)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def chain(heard: Heard) -> Chain:
    """A chain that follows the partition from 100."""
    chain = Chain(heard, lambda: 0.0)
    chain.begin(P, 100, OLD)
    assert heard.since() == [("watermark", 100)]
    return chain


def test_a_frame_that_follows_passes(chain: Chain, heard: Heard) -> None:
    chain.frame(frame(100, 105))
    chain.frame(frame(105, 106))
    assert heard.since() == [("message", 105), ("message", 106)]
    assert not chain.due


def test_a_frame_that_could_not_be_told_is_a_gap(chain: Chain, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(partition: int, message: Message) -> None:
        raise RuntimeError("of whoever is told")

    with monkeypatch.context() as patch:
        patch.setattr(heard, "message", fail)
        with pytest.raises(RuntimeError):
            chain.frame(frame(100, 105))
    chain.frame(frame(105, 106))
    assert chain.due == {P}
    chain.claims(P)
    chain.answered(P, 106, OLD)
    assert heard.since() == [("gap", 106)]


def test_a_frame_that_was_seen_is_dropped(chain: Chain, heard: Heard) -> None:
    chain.frame(frame(90, 95))
    chain.frame(frame(95, 100))
    assert heard.since() == []
    assert not chain.due


def test_frames_of_a_partition_that_is_not_followed_are_dropped(chain: Chain, heard: Heard) -> None:
    chain.end(P)
    chain.frame(frame(100, 105))
    assert heard.since() == []
    assert not chain.due


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(frame(105, 110), id="one is missing"),
        pytest.param(frame(95, 110), id="it goes past what was seen"),
        pytest.param(frame(100, 110, NEW), id="another history"),
        pytest.param(frame(80, 90, NEW), id="another history, below what was seen"),
    ],
)
def test_a_frame_that_does_not_fit_is_held_and_the_store_asked(chain: Chain, heard: Heard, broken: Frame) -> None:
    chain.frame(broken)
    chain.frame(frame(broken.message.offset, 120, broken.history))
    assert heard.since() == []
    assert chain.due == {P}


def test_after_the_answer_a_gap_is_told_and_what_was_held_goes_on_behind_it(chain: Chain, heard: Heard) -> None:
    chain.frame(frame(105, 110))
    chain.frame(frame(110, 120))
    chain.claims(P)
    chain.answered(P, 110, OLD)
    assert heard.since() == [("gap", 110), ("message", 120)]
    assert not chain.due


def test_an_answer_without_news_tells_nothing(chain: Chain, heard: Heard) -> None:
    chain.suspect([P])
    assert chain.due == {P}
    chain.claims(P)
    chain.answered(P, 100, OLD)
    chain.frame(frame(100, 105))
    assert heard.since() == [("message", 105)]


def test_an_answer_finds_the_lost_last_message(chain: Chain, heard: Heard) -> None:
    chain.claims(P)
    chain.answered(P, 105, OLD)
    chain.frame(frame(100, 105))  # late
    chain.frame(frame(105, 106))
    assert heard.since() == [("gap", 105), ("message", 106)]


def test_live_goes_on_while_a_periodic_check_is_under_way(chain: Chain, heard: Heard) -> None:
    chain.claims(P)
    chain.frame(frame(100, 105))
    chain.answered(P, 100, OLD)
    chain.frame(frame(105, 106))
    assert heard.since() == [("message", 105), ("message", 106)]


def test_it_claims_its_watermark_and_what_it_published(chain: Chain) -> None:
    assert chain.claims(P) == [(100, OLD, 0)]
    chain.acknowledged(P, 130, OLD)
    assert chain.claims(P) == [(130, OLD, 0)]
    chain.acknowledged(P, 140, NEW)
    assert sorted(chain.claims(P)) == [(130, OLD, 0), (140, NEW, 0)]


def test_an_acknowledgement_that_comes_late_lowers_no_claim(chain: Chain) -> None:
    chain.acknowledged(P, 130, OLD)
    chain.acknowledged(P, 120, OLD)
    assert chain.claims(P) == [(130, OLD, 0)]


def test_an_acknowledgement_during_a_check_outlives_its_answer(chain: Chain) -> None:
    chain.acknowledged(P, 130, OLD)
    chain.claims(P)
    chain.acknowledged(P, 140, NEW)
    chain.answered(P, 135, NEW)
    assert chain.claims(P) == [(140, NEW, 0)]


def test_what_was_told_is_not_claimed_again(chain: Chain) -> None:
    chain.acknowledged(P, 130, OLD)
    chain.claims(P)
    chain.answered(P, 500, NEW)
    assert chain.claims(P) == [(500, NEW, 0)]


@pytest.fixture
def time() -> list[float]:
    """What the clock of `timed` says: seconds."""
    return [50.0]


@pytest.fixture
def timed(heard: Heard, time: list[float]) -> Chain:
    chain = Chain(heard, lambda: time[0])
    chain.begin(P, 100, OLD)
    return chain


def test_a_claim_says_how_long_ago_anything_was_heard_less_the_time_that_an_answer_takes(
    timed: Chain, time: list[float]
) -> None:
    time[0] += 0.9
    assert timed.claims(P) == [(100, OLD, 0)], "whoever published may not have the answer yet"
    time[0] += 1.6
    assert timed.claims(P) == [(100, OLD, 1_500_000)]
    timed.frame(frame(100, 105))
    time[0] += 2
    assert timed.claims(P) == [(105, OLD, 1_000_000)]
    timed.acknowledged(P, 104, OLD)
    time[0] += 3
    assert timed.claims(P) == [(105, OLD, 2_000_000)], "its own, which it was told of after the others"
    timed.frame(frame(103, 110))
    time[0] += 1.5
    assert timed.claims(P) == [(110, OLD, 500_000)], "held back"
    timed.read(P, 109, OLD)
    time[0] += 1.25
    assert timed.claims(P) == [(110, OLD, 250_000)]


def test_an_acknowledgement_during_a_check_is_claimed_though_more_was_claimed_already(
    timed: Chain, time: list[float]
) -> None:
    """Others may have been told of the loss before it came."""
    timed.acknowledged(P, 140, OLD)
    timed.claims(P)
    time[0] += 1
    timed.acknowledged(P, 130, OLD)
    time[0] += 3
    timed.answered(P, 500, NEW)
    assert sorted(timed.claims(P)) == [(140, OLD, 2_000_000), (500, NEW, 0)]


def test_following_tells_claims_too_and_settles_them(heard: Heard) -> None:
    chain = Chain(heard, lambda: 0.0)
    chain.acknowledged(P, 130, OLD)
    assert chain.claims(P) == [(130, OLD, 0)]
    chain.begin(P, 500, NEW)
    assert chain.claims(P) == [(500, NEW, 0)]


def test_a_publisher_stays_a_witness_of_what_it_does_not_follow(heard: Heard) -> None:
    chain = Chain(heard, lambda: 0.0)
    chain.acknowledged(P, 130, OLD)
    chain.claims(P)
    chain.answered(P, 140, NEW)
    assert heard.since() == []
    assert chain.claims(P) == [(140, NEW, 0)]


def test_what_is_held_back_is_claimed(chain: Chain) -> None:
    """The store may have lost exactly that, and then nobody else can tell."""
    chain.frame(frame(105, 110))
    chain.frame(frame(90, 103, NEW))
    assert sorted(chain.claims(P)) == [(103, NEW, 0), (110, OLD, 0)]


def test_what_may_be_another_message_is_held_back_and_not_claimed(chain: Chain, heard: Heard) -> None:
    """Where a take-over may lie before it that was not announced here: to claim it would be to tell of a loss."""
    chain.frame(frame(105, 110, sure=False))
    assert chain.claims(P) == [(100, OLD, 0)]
    chain.answered(P, 300, NEW)
    assert chain.due == {P}, "the answer may not cover it"
    chain.claims(P)
    chain.answered(P, 310, NEW)
    assert heard.since() == [("gap", 300), ("gap", 310)]
    assert not chain.due


def test_what_the_store_does_not_hold_of_it_is_asked_about_once_more_and_not_for_ever(chain: Chain) -> None:
    chain.frame(frame(105, 110, sure=False))
    for due in ({P}, set()):
        chain.claims(P)
        chain.answered(P, 100, OLD)
        assert chain.due == due


def test_it_is_passed_on_where_the_answer_shows_that_it_was_right(chain: Chain, heard: Heard) -> None:
    chain.frame(frame(105, 110, sure=False))
    chain.claims(P)
    chain.answered(P, 105, OLD)
    assert heard.since() == [("gap", 105), ("message", 110)]
    assert not chain.due


def test_what_makes_a_partition_suspect_while_it_is_asked_about_is_asked_about_too(chain: Chain) -> None:
    chain.suspect([P])
    chain.claims(P)
    chain.suspect([P])
    chain.answered(P, 100, OLD)
    assert chain.due == {P}
    chain.claims(P)
    chain.answered(P, 100, OLD)
    assert not chain.due


def test_a_frame_of_a_store_that_is_gone_is_asked_about_once(chain: Chain, heard: Heard) -> None:
    chain.suspect([P])
    chain.frame(frame(100, 110, OLD))
    chain.claims(P)
    chain.answered(P, 300, NEW)
    assert not chain.due
    chain.frame(frame(300, 305, NEW))
    assert heard.since() == [("gap", 300), ("message", 305)]


def test_a_frame_of_another_history_that_came_after_the_claims_is_asked_about(chain: Chain, heard: Heard) -> None:
    chain.suspect([P])
    chain.claims(P)
    chain.frame(frame(100, 110, OLD))
    chain.answered(P, 200, NEW)
    assert chain.due == {P}
    assert sorted(chain.claims(P)) == [(110, OLD, 0), (200, NEW, 0)]
    chain.answered(P, 300, NEW)
    assert not chain.due
    assert heard.since() == [("gap", 200), ("gap", 300)]


def test_the_next_history_may_be_seen_before_its_answer(chain: Chain, heard: Heard) -> None:
    chain.frame(frame(100, 110, NEW))
    chain.claims(P)
    chain.answered(P, 110, NEW)
    chain.frame(frame(110, 111, NEW))
    assert heard.since() == [("gap", 110), ("message", 111)]


@pytest.mark.parametrize("bound", ["HELD_FRAMES", "HELD_BYTES"])
def test_what_cannot_be_held_is_asked_about_again(
    chain: Chain, heard: Heard, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, bound, 2 if bound == "HELD_FRAMES" else 2 * frame(1, 2).message.size)
    chain.frame(frame(105, 110))
    chain.claims(P)
    for offset in (111, 112, 113):
        chain.frame(frame(offset - 1, offset))
    chain.answered(P, 110, OLD)
    assert heard.since() == [("gap", 110), ("message", 111)]
    assert chain.due == {P}
    assert chain.claims(P) == [(113, OLD, 0)], "a frame that was dropped is known of all the same"
    chain.answered(P, 113, OLD)
    assert heard.since() == [("gap", 113)]
    assert not chain.due


def test_a_read_makes_a_witness(chain: Chain) -> None:
    assert chain.read(P, 150, OLD)
    assert chain.claims(P) == [(150, OLD, 0)]


def test_a_read_of_less_than_was_told_is_not_to_be_used(chain: Chain) -> None:
    assert not chain.read(P, 99, NEW)
    assert chain.read(P + 1, 1, NEW)


# ---------------------------------------------------------------- answers that take another way than frames


def test_frames_may_come_before_the_store_has_said_where_a_new_partition_is(heard: Heard) -> None:
    chain = Chain(heard, lambda: 0.0)
    chain.expect(P)
    chain.frame(frame(90, 100))
    chain.frame(frame(100, 105))
    assert chain.claims(P) == [(105, OLD, 0)], "no position of its own yet"
    chain.answered(P, 100, OLD)
    assert heard.since() == [("watermark", 100), ("message", 105)]
    assert not chain.due


def test_what_the_store_is_ahead_may_be_on_its_way(chain: Chain, heard: Heard) -> None:
    chain.claims(P)
    chain.reported(P, 105, OLD)
    chain.overdue()
    chain.frame(frame(100, 105))
    chain.overdue()
    assert heard.since() == [("message", 105)]
    assert not chain.due


def test_what_has_not_come_in_time_is_asked_about(chain: Chain, heard: Heard) -> None:
    chain.claims(P)
    chain.reported(P, 105, OLD)
    chain.overdue()
    assert not chain.due, "it may have been reported just now"
    chain.overdue()
    assert heard.since() == []
    assert chain.due == {P}


@pytest.mark.parametrize("why", ["history", "held"])
def test_a_report_that_changes_something_is_an_answer(chain: Chain, heard: Heard, why: str) -> None:
    if why == "held":
        chain.suspect([P])
    chain.claims(P)
    chain.reported(P, 105, NEW if why == "history" else OLD)
    assert heard.since() == [("gap", 105)]
    assert not chain.due


def test_a_publish_is_to_find_the_one_history_its_node_knows(chain: Chain) -> None:
    assert chain.history(P) == ""
    chain.acknowledged(P, 130, OLD)
    assert chain.history(P) == OLD
    chain.acknowledged(P, 140, NEW)
    assert chain.history(P) not in ("", OLD, NEW), "it has to be checked first"
    chain.claims(P)
    chain.answered(P, 150, NEW)
    assert chain.history(P) == NEW
