"""Figures of alternating rounds: medians, spread and ratios, and whether they are what they are to be."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Round = Callable[[], Awaitable[float]]
Figures = dict[str, list[float]]


@dataclass
class Goal:
    """A figure that is to be reached: at most `limit`, or at least where that is said."""

    work: str
    found: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    @property
    def bound(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.limit:g} {self.unit}"


@dataclass
class Table:
    """What a benchmark found: figures of each way, one a round."""

    title: str
    unit: str
    figures: Figures
    beside: str | None = None  # the way that ratios are to
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, float, float, float, float | None]]:
        """Of each way its median, least, most, and the median ratio."""
        found = []
        for name, figures in self.figures.items():
            beside = ratio(self.figures, name, self.beside) if self.beside else None
            found.append((name, statistics.median(figures), min(figures), max(figures), beside))
        return found

    def aim(self, work: str, ours: str, theirs: str, limit: float, unit: str) -> None:
        """A goal for the ratio of two ways; none where one of them was not there."""
        if ours in self.figures and theirs in self.figures:
            self.goals.append(Goal(work, ratio(self.figures, ours, theirs), limit, unit))

    def aim_at(self, work: str, ours: str, limit: float, unit: str) -> None:
        """A goal for a figure itself."""
        self.goals.append(Goal(work, statistics.median(self.figures[ours]), limit, unit))

    def aim_below(self, work: str, ours: str, peers: list[str]) -> None:
        """A goal to be below the cheapest of all peers."""
        there = [peer for peer in peers if peer in self.figures]
        if there:
            best = min(there, key=lambda peer: statistics.median(self.figures[peer]))
            self.aim(work, ours, best, 1.0, f"x {best}, the cheapest peer")

    def show(self) -> None:
        rounds = max(map(len, self.figures.values()))
        print(f"\n{self.title} ({self.unit}; medians of {rounds} round{'s' if rounds > 1 else ''})")
        print(f"{'':44}{'median':>9}{'least':>9}{'most':>9}{'ratio':>8}")
        for name, median, least, most, beside in self.rows():
            print(f"{name:44}{median:9.2f}{least:9.2f}{most:9.2f}" + (f"{beside:8.2f}" if beside is not None else ""))
        for note in self.notes:
            print(f"  {note}")
        for goal in self.goals:
            mark = "reached" if goal.reached else "MISSED "
            print(f"  {mark} {goal.work}: {goal.found:.3g}, to be {goal.bound}", flush=True)


async def alternate(rounds: int, ways: dict[str, Round]) -> Figures:
    """Each way once a round, so that what else the machine does meets all of them."""
    found: Figures = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(await way())
    return found


def ratio(found: Figures, ours: str, theirs: str) -> float:
    """The median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(found[ours], found[theirs], strict=True))
