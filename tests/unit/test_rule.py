"""The one rule over the product's own store, chains, hubs and sessions, in worlds where everything goes wrong.

A run is one seed of `tests.support.world`. The seeds are always the same; `make chaos` takes many new ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.brokers.base import Page
from gateway.brokers.chain import Chain, Claim, Frame
from gateway.brokers.memory_store import Log, MemoryStore, Part
from gateway.recent import Channel, Recent
from gateway.session import Session
from gateway.settings import Policy
from tests.support.simulated_node import Parts, WatchedHub
from tests.support.world import World, run


def faults(seeds: Iterable[int], parts: Parts | None = None) -> dict[int, str]:
    return {seed: world.faults[0] for seed in seeds if (world := run(seed, parts)).faults}


def test_nothing_is_missed_silently_repeated_or_kept_beyond_its_bound() -> None:
    assert faults(range(400)) == {}


def test_the_same_holds_where_a_store_that_was_replaced_lives_on_and_takes_writes() -> None:
    assert faults(range(60), Parts(tears=True)) == {}


@pytest.mark.chaos
@pytest.mark.parametrize("tears", [False, True])
def test_the_same_holds_in_many_more_lives(tears: bool) -> None:
    assert faults((random.randrange(1 << 40) for _ in range(10_000)), Parts(tears=tears)) == {}


@settings(
    max_examples=25, derandomize=True, deadline=None, database=None,
    phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.randoms(use_true_random=False), st.integers(min_value=1, max_value=60))
def test_short_lives_hold_too_and_a_failing_one_shrinks(source: random.Random, steps: int) -> None:
    world = World(source)
    for _ in range(steps):
        world.step()
    world.settle()
    assert not world.faults


# ---------------------------------------------------------------- every part of the rule is needed


class NoEdge(MemoryStore):
    """A channel that holds nothing shows every position."""

    def empty_edge(self, part: Part, policy: Policy) -> int:
        return 0


class ShowsAll(MemoryStore):
    def shown(self, log: Log, first: int, since: int) -> bool:
        return True


class NoFloor(MemoryStore):
    def read(self, channel: str, since: int, limit: int) -> Page:
        return replace(super().read(channel, since, limit), floor=0)


class NoTakeover(MemoryStore):
    """Nobody's claim is ever found lost."""

    def lost(self, part: Part, claim: Claim) -> bool:
        return False


class NoTakeovers(MemoryStore):
    """A claim is compared with the highest offset alone, whoever wrote that."""

    def lost(self, part: Part, claim: Claim) -> bool:
        return claim.offset > part.top


class NoAge(MemoryStore):
    """A claim below what was told of last is taken for told, whenever it was heard of."""

    def lost(self, part: Part, claim: Claim) -> bool:
        return claim.offset >= part.announced and super().lost(part, claim)


class NoTime(MemoryStore):
    """Offsets are plain numbers: a store that lost some issues them again."""

    def next_offset(self, part: Part) -> int:
        return part.top + 1


class NoChain(Chain):
    """Whatever comes is taken to follow on what was seen."""

    def frame(self, frame: Frame) -> None:
        at = self.followed.get(frame.partition)
        if at is not None and at.held is None:
            frame = msgspec.structs.replace(frame, before=at.watermark)
        super().frame(frame)


class NoHistory(Chain):
    """Frames are taken for what their offsets say. Offsets that contain time tell the same, as long as they do."""

    def frame(self, frame: Frame) -> None:
        at = self.followed.get(frame.partition)
        if at is not None and at.held is None:
            frame = msgspec.structs.replace(frame, history=at.history)
        super().frame(frame)


class NoAhead(WatchedHub):
    def ahead(self, channel: Channel, since: int) -> int:
        return 0


class NothingHeld(Recent):
    def holds(self, channel: Channel, since: int) -> bool:
        return False


class NoReplay(WatchedHub):
    """Whoever comes back goes live at once, whatever was published meanwhile."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.recent = NothingHeld(self.recent.limit)


class NoHolding(WatchedHub):
    """What goes live before the welcome is offered messages before it."""

    def _hold_back(self, session: Session) -> None:
        if session.opening is None:
            super()._hold_back(session)


WITHOUT = {  # and a seed that shows it, so that the search is short
    "edge": (Parts(store=NoEdge), 13),
    "shown": (Parts(store=ShowsAll), 3),
    "floor": (Parts(store=NoFloor), 2),
    "takeover": (Parts(store=NoTakeover), 2),
    "takeovers": (Parts(store=NoTakeovers), 2),
    "age": (Parts(store=NoAge, tears=True), 912),
    "time": (Parts(store=NoTime), 126),
    "chain": (Parts(chain=NoChain), 1),
    "history and time": (Parts(store=NoTime, chain=NoHistory), 34),
    "ahead": (Parts(hub=NoAhead), 7),
    "replay": (Parts(hub=NoReplay), 99),
    "holding": (Parts(hub=NoHolding), 4),
    "witness": (Parts(witness=False), 27),
    "check": (Parts(checks=False), 46),
}


@pytest.mark.parametrize("part", WITHOUT)
def test_a_run_fails_without(part: str) -> None:
    parts, likely = WITHOUT[part]
    seeds = [likely, *range(5000)]
    assert any(run(seed, parts).faults for seed in seeds), f"{part} is not needed, or no run shows it"
