"""One timing wheel for all sessions: scheduling is a set insertion, and one task of the process turns it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

TICK = 0.25  # seconds; how late something may come up


class Wheel(Generic[T]):
    """Each entry comes up once, in the tick after its time; one that is scheduled again moves."""

    def __init__(self) -> None:
        self._slots: defaultdict[int, set[T]] = defaultdict(set)
        self._slot_of: dict[T, int] = {}
        self._turned: int | None = None

    def schedule(self, entry: T, at: float) -> None:
        self.cancel(entry)
        slot = max(int(at / TICK) + 1, (self._turned or 0) + 1)
        self._slots[slot].add(entry)
        self._slot_of[entry] = slot

    def cancel(self, entry: T) -> None:
        slot = self._slot_of.pop(entry, None)
        if slot is not None:
            self._slots[slot].discard(entry)
            if not self._slots[slot]:
                del self._slots[slot]

    def due(self, now: float) -> Iterator[T]:
        """The entries whose time has come."""
        current = int(now / TICK)
        turned = current - 1 if self._turned is None else self._turned
        late = range(turned + 1, current + 1) if current - turned <= len(self._slots) else sorted(self._slots)
        self._turned = current
        for slot in late:
            if slot <= current:
                for entry in self._slots.pop(slot, ()):
                    del self._slot_of[entry]
                    yield entry

    def __len__(self) -> int:
        return len(self._slot_of)
