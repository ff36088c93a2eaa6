"""The policies of all namespaces as one record, which the nodes of a deployment keep in the store and compare.

Nodes should be given the same. Where they are not, the one that was started last has its way on all of them, and each
says so in its log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from gateway.settings import Policy, Settings

log = logging.getLogger("ringcast.store")

OWN = ("jobs", "presence", "ringcast")
OTHERS = "default"


@dataclass(frozen=True, slots=True)
class Policies:
    """What each namespace keeps. A generation is the microsecond from which on it counts; later ones win."""

    generation: int
    namespaces: Mapping[str, Policy]

    @classmethod
    def of_settings(cls, settings: Settings) -> Policies:
        names = {OTHERS, *OWN, *settings.channels}
        return cls(0, {name: settings.policy(f"{name}:") for name in names})

    def of(self, channel: str) -> Policy:
        found = self.namespaces.get(channel[: channel.index(":")])
        return self.namespaces[OTHERS] if found is None else found

    def differences(self, other: Policies) -> list[str]:
        """In words, what is another way in `other`; empty where both keep the same."""
        found: list[str] = []
        for name in sorted({*self.namespaces, *other.namespaces}):
            ours, theirs = self.of(f"{name}:"), other.of(f"{name}:")
            found += [
                f"{name}.{field} = {getattr(ours, field)!r} -> {getattr(theirs, field)!r}"
                for field in Policy.model_fields if getattr(ours, field) != getattr(theirs, field)
            ]  # fmt: skip
        return found

    def encode(self) -> bytes:
        return msgspec.json.encode({name: policy.model_dump() for name, policy in sorted(self.namespaces.items())})


def decode(generation: int, record: bytes) -> Policies | None:
    """A record, also one of another release: what that did not know is the default, what this does not is passed by.

    None for one that cannot be read, which is said in the log: it proves nothing, and the next that counts is this
    node's own.
    """
    try:
        found = msgspec.json.decode(record, type=dict[str, dict[str, object]])
        namespaces = {
            name: Policy.model_validate({field: policy[field] for field in policy if field in Policy.model_fields})
            for name, policy in found.items()
        }
        if OTHERS not in namespaces:
            raise ValueError(f"{OTHERS!r} is missing")
    except ValueError as error:
        log.error("the policies in the store cannot be read, and this node's count from now on: %s", error)
        return None
    return Policies(generation, namespaces)
