"""What a trial found: figures, and whether all is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from gateway.verify import EVENT_SOURCE
from gateway.verify.ledger import Ledger
from gateway.verify.track import Tally

SHOWN = 20  # faults that are told one by one


class Spread(msgspec.Struct, frozen=True):
    """Seconds. All 0 where there was nothing to measure."""

    p50: float
    p99: float
    most: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`lost` counts deliveries that a canary was owed and never had; `unannounced` those of which no reset told."""

    ok: bool
    seconds: float
    canaries: dict[str, int]  # by transport
    published: int
    acknowledged: int
    delivered: int
    lost: int
    unannounced: int
    duplicated: int
    reordered: int
    repeated: int  # seen again by bare EventSources, above the position with which they came back: as promised
    resets: int
    gave_up: int  # canaries
    absent: int  # canaries without a connection at the end
    reconnects: int
    failed_attempts: dict[str, int]  # by transport and reason
    goodbyes: int  # connections that had been told to go when they ended
    broken: dict[str, int]  # connections that had not, by transport and reason
    resume: Spread
    away: Spread
    reconnects_per_second: dict[str, int]  # the most within one second, by node
    command: int | None  # its exit code
    faults: list[str]  # the first of them

    def complaints(self) -> list[str]:
        """Why it is not well: a sentence each."""
        counts = (
            (self.lost, "deliveries were lost"), (self.unannounced, "of these were told by no reset"),
            (self.duplicated, "came twice"), (self.reordered, "came out of order"),
            (self.resets, "resets were told: messages may be missing there"), (self.gave_up, "canaries gave up"),
            (self.absent, "canaries had no connection at the end"),
            (self.published - self.acknowledged, "publishes were never acknowledged"),
        )  # fmt: skip
        said = [f"{count} {what}" for count, what in counts if count]
        if not self.acknowledged or not self.delivered:
            said.append("nothing was delivered, so nothing was shown")
        if self.command:
            said.append(f"the command ended with {self.command}")
        return said


def judge(ledger: Ledger, tallies: Sequence[Tally], seconds: float, command: int | None) -> Result:
    """The result, once nothing more comes."""
    faults = ledger.judged()
    kinds = Counter(fault.kind for fault in faults)
    resumes = [value for tally in tallies for value in tally.resumes]
    arrivals = [arrival for tally in tallies for arrival in tally.arrivals]
    result = Result(
        ok=True, seconds=round(seconds, 1), canaries={tally.transport: tally.canaries for tally in tallies},
        published=len(ledger.tried), acknowledged=ledger.published, delivered=ledger.deliveries,
        lost=kinds["lost"] + kinds["unannounced"], unannounced=kinds["unannounced"],
        duplicated=kinds["duplicated"] + kinds["reissued"] + sum(tally.duplicated for tally in tallies),
        reordered=kinds["reordered"] + sum(tally.reordered for tally in tallies),
        # Of the others, what comes on a connection that is opened beside another one; they pass over it.
        repeated=sum(tally.repeated for tally in tallies if tally.transport == EVENT_SOURCE),
        resets=sum(tally.resets for tally in tallies),
        gave_up=kinds["ended"], absent=sum(tally.canaries - tally.connected for tally in tallies),
        reconnects=len(resumes),
        failed_attempts=_reasons((tally.transport, tally.failed) for tally in tallies),
        goodbyes=sum(tally.goodbyes for tally in tallies),
        broken=_reasons((tally.transport, tally.broken) for tally in tallies),
        resume=spread(resumes), away=spread(value for tally in tallies for value in tally.away),
        reconnects_per_second=busiest(arrivals), command=command, faults=list(map(str, faults[:SHOWN])),
    )  # fmt: skip
    return msgspec.structs.replace(result, ok=not result.complaints())


def _reasons(counted: Iterable[tuple[str, Counter[str]]]) -> dict[str, int]:
    """The most frequent ones."""
    found = Counter({f"{transport}: {why}": count for transport, reasons in counted for why, count in reasons.items()})
    return dict(found.most_common(SHOWN))


def spread(values: Iterable[float]) -> Spread:
    found = sorted(values)
    if not found:
        return Spread(0.0, 0.0, 0.0)
    return Spread(*(round(found[min(len(found) - 1, int(share * len(found)))], 3) for share in (0.5, 0.99, 1.0)))


def busiest(arrivals: Iterable[tuple[float, str]]) -> dict[str, int]:
    """The most arrivals within any one second, by node."""
    times: dict[str, list[float]] = {}
    for at, node in sorted(arrivals):
        times.setdefault(node, []).append(at)
    most = {}
    for node, found in sorted(times.items()):
        first = most[node] = 0
        for last, at in enumerate(found):
            while at - found[first] >= 1.0:
                first += 1
            most[node] = max(most[node], last - first + 1)
    return most
