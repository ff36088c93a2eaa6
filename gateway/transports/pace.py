"""How soon a poll that watches nothing but jobs is to come again, and whether it need not."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.job import PACE
from gateway.message import Message
from gateway.session import Item

_OF_ONE = "jobs:job."


class _Phase(msgspec.Struct):
    state: str = "pending"
    final: bool = False


class _Value(msgspec.Struct):
    channel: str
    key: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    deleted: bool = False


_decode_value = msgspec.json.Decoder(_Value).decode
_decode_phase = msgspec.json.Decoder(_Phase | None).decode


def pace(
    channels: Iterable[str], snapshots: Iterable[Iterable[msgspec.Raw]], items: Iterable[Item]
) -> tuple[float | None, bool]:
    """Seconds until the next poll, None where the answer says nothing about it; and whether nothing more is expected.

    That is so where every channel is a single job's and its end is in the answer. Of other channels a job that begins
    is expected at any time; and a session with any that is not of jobs is told of those without delay.
    """
    channels = set(channels)
    if not channels or not all(channel.startswith("jobs:") for channel in channels):
        return None, False
    phases: dict[tuple[str, str], _Phase] = {}
    for value in [
        *(_decode_value(raw) for snapshot in snapshots for raw in snapshot),
        *(_Value(m.channel, m.key, msgspec.Raw(m.data), m.deleted) for m in items if isinstance(m, Message)),
    ]:
        phase = None if value.deleted else _decode_phase(value.data)
        if value.key is not None and phase is not None:
            phases[value.channel, value.key] = phase
    if not phases:
        return None, False
    ended = {channel for (channel, job), phase in phases.items() if phase.final and channel == _OF_ONE + job}
    if ended == channels:
        return None, True
    going = [phase.state for phase in phases.values() if not phase.final]
    return min((PACE.get(state, PACE["pending"]) for state in going), default=PACE["pending"]), False

