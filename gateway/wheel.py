"""One timing wheel for all sessions: scheduling is a set insertion, and one task of the process turns it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

TICK = 0.25  # seconds; how late something may come up


class Slot(set[Any]):
    """The entries of one tick."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Entry(Protocol):
    """What a wheel schedules. It remembers itself where it is: a table of that has 70 bytes an entry."""

    slot: Slot | None  # None to begin with


T = TypeVar("T", bound=Entry)


class Wheel(Generic[T]):
    """Each entry comes up once, in the tick after its time; one that is scheduled again moves."""

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}
        self._turned: int | None = None

    def schedule(self, entry: T, at: float) -> None:
        self.cancel(entry)
        number = max(int(at / TICK) + 1, (self._turned or 0) + 1)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = Slot(number)
        slot.add(entry)
        entry.slot = slot

    def cancel(self, entry: T) -> None:
        slot, entry.slot = entry.slot, None
        if slot is not None:
            slot.discard(entry)
            if not slot:
                self._slots.pop(slot.number, None)

    def due(self, now: float) -> Iterator[T]:
        """The entries whose time has come."""
        current = int(now / TICK)
        turned = self._turned
        if turned is None or current - turned > len(self._slots):
            late: Iterable[int] = sorted(self._slots)
        else:
            late = range(turned + 1, current + 1)
        self._turned = current
        for slot in late:
            if slot <= current:
                for entry in self._slots.pop(slot, ()):
                    entry.slot = None
                    yield entry

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))
