"""The ledger of what clients saw, judged by what the store holds in the end. No I/O.

A client may miss an acknowledged message only where the store holds it no longer, and only if a reset of that channel
came after it had been acknowledged. (Not where it was missing: a reset tells that what follows has holes, up to where
the store's floor was raised to.) So some faults mean less here, and there is one more:

    lost         the store holds it, the client follows its channel, and never saw it: with or without a reset
    unannounced  the store lost it, and the client was told of no gap
    needless     a reset of a channel in whose partition the store lost nothing
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from gateway.verify.ledger import Fault, Ledger, duplicated

NODES = "ringcast:nodes"
# What the store may have lost in a run. "torn" is some, where two servers took writes at once: a client that had gone
# on with the one which lost is told so by a reset, where it stands; below that is what the other had stored then, and
# above it, where the reset went back, what it had seen of the other already.
Loses = Literal["nothing", "some", "torn", "everything"]


class StoreLedger(Ledger):
    """`partition` tells which channels share a fate in the store."""

    def __init__(self, partition: Callable[[str], int]) -> None:
        super().__init__()
        self._partition = partition
        self.held: dict[str, dict[int, str]] = {}  # by channel: id by offset, of what the store holds in the end

    def holds(self, channel: str, messages: Iterable[tuple[int, str]]) -> None:
        """What the store holds of a channel, after the last publish."""
        self.held[channel] = dict(messages)

    def missing(self, loses: Loses = "nothing") -> list[Fault]:
        """What clients are owed, still or for ever. Needs all that the store holds."""
        found: list[Fault] = []
        for client, channel, offset, id, acked, seen in self.unseen():
            if offset in self.held.get(channel, {}):
                if loses == "torn" and any(at >= acked and place >= offset for at, place in seen.told):
                    continue
                found.append(Fault("lost", client, channel, f"{offset} {id}"))
            elif seen.reset_at < acked:
                found.append(Fault("unannounced", client, channel, f"{offset} {id}"))
        return found

    def verdict(self, loses: Loses) -> list[Fault]:
        """Everything that is wrong, once nothing more comes."""
        found = [*self.faults, *self.missing(loses), *self._repeated()]
        if loses == "torn":
            found = [fault for fault in found if fault.kind != "duplicated" or not self._went_back(fault)]
        lost = self._lost_partitions()
        for client, channels in self.clients.items():
            for channel, seen in channels.items():
                excused = loses == "everything" or (loses in ("some", "torn") and self._partition(channel) in lost)
                if seen.resets and not excused:
                    found.append(Fault("needless", client, channel, f"{seen.resets} resets"))
        for channel, acknowledged in self.acknowledged.items():
            for offset, id in self.held.get(channel, {}).items():
                if acknowledged.get(offset, id) != id:
                    found.append(Fault("reissued", "", channel, f"{offset} is {id} in the store"))
                if id not in self.tried:
                    found.append(Fault("invented", "", channel, f"{offset} {id} is in the store"))
            if loses == "nothing" and (gone := set(acknowledged) - set(self.held.get(channel, {}))):
                found.append(Fault("lost", "", channel, f"the store holds {len(gone)} no longer, as {min(gone)}"))
        return found

    def gone(self) -> int:
        """How many acknowledged messages the store holds no longer."""
        return sum(len(set(acked) - set(self.held.get(channel, {}))) for channel, acked in self.acknowledged.items())

    def _repeated(self) -> list[Fault]:
        """Ids that came twice. A store that lost the first may store a publisher's retry once more, behind a reset."""
        return [
            duplicated(repeat) for repeat in self.repeats()
            if repeat.first in self.held.get(repeat.channel, {}) or repeat.seen.reset_place < repeat.place
        ]  # fmt: skip

    def _went_back(self, fault: Fault) -> bool:
        """Whether every repeat of that client and channel came behind a reset below it."""
        seen, last = self.clients[fault.client][fault.channel], dict[int, int]()
        for place, (offset, id) in enumerate(seen.events):
            if id is not None:
                if offset in last and not any(
                    what is None and at < offset for at, what in seen.events[last[offset] : place]
                ):
                    return False
                last[offset] = place
        return True

    def _lost_partitions(self) -> set[int]:
        """Where the store lost something that was acknowledged or seen, or may have lost what was neither."""
        lost = {self._partition(channel) for channel in self.acknowledged if self._differs(channel)}
        lost.add(self._partition(NODES))  # the nodes publish there all the time, and not in this ledger
        acknowledged = {id for ids in self.acknowledged.values() for id in ids.values()}
        held = {id for ids in self.held.values() for id in ids.values()}
        lost |= {self._partition(channel) for id, channel in self.tried.items() if id not in acknowledged | held}
        for channels in self.clients.values():
            for channel, seen in channels.items():
                if seen.offsets - self.held.get(channel, {}).keys():
                    lost.add(self._partition(channel))
        return lost

    def _differs(self, channel: str) -> bool:
        return bool(self.acknowledged[channel].keys() - self.held.get(channel, {}).keys())
