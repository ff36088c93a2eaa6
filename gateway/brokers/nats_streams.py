"""How the streams are set up: what each family keeps and for how long, and that all nodes agree on it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from gateway.brokers.nats_api import NAME_IN_USE, STREAM_NOT_FOUND, Api, ApiError, Config, Info
from gateway.brokers.nats_link import Url
from gateway.brokers.nats_names import Names
from gateway.brokers.nats_policies import NatsPolicies
from gateway.settings import TABLE, ConfigError, Policy, Settings

log = logging.getLogger("ringcast.nats")

SECOND = 1_000_000_000  # the server's durations are nanoseconds
TOMBSTONE = 24 * 3600.0  # seconds that a deletion is remembered for at least
FORMAT = "1"  # of how streams are used
AT_ONCE = 32  # streams asked for or made at a time


class Limit(NamedTuple):
    """What a stream kept from a time on."""

    since: int  # microseconds since 1970
    per_subject: int
    max_age: int  # nanoseconds


@dataclass(frozen=True, slots=True)
class Family:
    """What all log streams, or all table streams, of a deployment keep: as much as their greediest namespace asks."""

    per_subject: int
    max_age: int  # nanoseconds

    @classmethod
    def of(cls, policies: Iterable[Policy], settings: Settings, *, keyed: bool) -> Family:
        found = list(policies)
        age = max([settings.idempotency_window, *(policy.history_ttl for policy in found)])
        if keyed:
            age = max(age, max(policy.key_ttl for policy in found) + TOMBSTONE)
        # One more than is promised: a subject that holds less than its limit was never trimmed.
        per_subject = max([1, *(policy.history_size for policy in found)]) + 1
        return cls(per_subject, int(age * SECOND))


class Streams:
    def __init__(self, settings: Settings, url: Url, names: Names) -> None:
        self.settings = settings
        self.url = url
        self.names = names
        self.policies = NatsPolicies(settings, names)
        policies = [*settings.channels.values(), settings.policy("default:")]
        self.logs = Family.of([policy for policy in policies if not policy.keyed], settings, keyed=False)
        self.tables = Family.of([TABLE, *(policy for policy in policies if policy.keyed)], settings, keyed=True)
        self.keyed = tuple(sorted(
            name for name, policy in {"default": settings.policy("default:"), **settings.channels}.items()
            if policy.keyed
        ))  # fmt: skip
        self.settled: set[int] = set()  # streams whose keyed namespaces this node has compared with its own
        self._agreed: set[int] = set()  # streams this node has given its limits to, or found them to have
        self._warned: set[Family] = set()
        self._at_once = asyncio.Semaphore(AT_ONCE)

    def family(self, number: int) -> Family:
        return self.tables if self.names.keyed(number) else self.logs

    def longest_ttl(self) -> float:
        """Seconds for which a key's value may be kept at most."""
        return self.tables.max_age / SECOND - TOMBSTONE

    async def open(self, api: Api, number: int, above: int) -> Info:
        """The stream, made if it does not exist, beginning now and above the offset `above`.

        Raises ConfigError when this node and the stream's makers do not agree.
        """
        async with self._at_once:
            info = await self._find(api, number, above)
            form = info.config.metadata.get("ringcast.format")
            if form != FORMAT:
                raise ConfigError(
                    f"broker: stream {self.names.stream(number)} is kept in format {form} and this release reads format"
                    f" {FORMAT}: upgrade this node, or set another prefix in the broker's URL"
                )
            theirs = info.config.metadata.get("ringcast.partitions")
            if theirs != str(self.settings.partitions):
                raise ConfigError(
                    f"partitions: this deployment has {theirs} and this node {self.settings.partitions}; messages would"
                    " be looked for in the wrong places: set the same number, or another prefix in the broker's URL"
                )
            if info.config.num_replicas == 1 and api.link.connection.clustered:
                raise ConfigError(
                    f"broker: stream {self.names.stream(number)} has one replica in a cluster, and whoever restarts"
                    " that server loses messages in silence: set replicas=3 in the broker's URL, with another prefix"
                    " if the streams exist"
                )
            if number not in self._agreed:
                await self._agree(api, number, info.config)
                self._agreed.add(number)
            return info

    async def _find(self, api: Api, number: int, above: int) -> Info:
        stream, record = self.names.stream(number), self.names.record(number)
        while True:
            try:
                return await api.info(stream, record)
            except ApiError as error:
                if error.code != STREAM_NOT_FOUND:
                    raise
            if self.url.replicas == 1 and api.link.connection.clustered:
                raise ConfigError("broker: replicas=1 is for a single server, and this one is part of a cluster: set 3")
            try:
                await api.create(self._config(number, self._limits(number, ()), api, above))
            except ApiError as error:
                if error.code != NAME_IN_USE:  # another node was faster
                    raise
            self._agreed.add(number)

    def _limits(self, number: int, before: Iterable[Limit]) -> list[Limit]:
        """The limits from now on, behind those that may still have left their mark."""
        family, now = self.family(number), time.time_ns() // 1000
        history = [*before, Limit(now, family.per_subject, family.max_age)]
        longest = max(limit.max_age for limit in history) // 1000
        return [
            limit for limit, after in zip(history, [*history[1:], None], strict=True)
            if after is None or after.since + longest > now
        ]  # fmt: skip

    def _config(self, number: int, limits: list[Limit], api: Api, above: int = 0) -> dict[str, Any]:
        names, settings, limit = self.names, self.settings, limits[-1]
        clustered = api.link.connection.clustered
        replicas = self.url.replicas or (3 if clustered else 1)
        return {
            "name": names.stream(number), "subjects": [f"{names.subject(number)}.>"],
            "retention": "limits", "discard": "old", "storage": self.url.storage, "num_replicas": replicas,
            "max_msgs_per_subject": limit.per_subject, "max_age": limit.max_age,
            "duplicate_window": int(settings.idempotency_window * SECOND),
            "first_seq": max(time.time_ns() // 1000, above + 2),  # so that `above` lies below its floor
            "republish": {"src": f"{names.subject(number)}.>", "dest": f"{names.live(number)}.>"},
            "allow_direct": True, "allow_msg_ttl": True, "deny_delete": True, "deny_purge": True,
            "metadata": {
                "ringcast.format": FORMAT, "ringcast.partitions": str(settings.partitions),
                "ringcast.limits": msgspec.json.encode(limits).decode(),
            },
        }  # fmt: skip

    async def _agree(self, api: Api, number: int, config: Config) -> None:
        """Give an existing stream this node's limits, once: of nodes that differ the newest wins."""
        family = self.family(number)
        window = int(self.settings.idempotency_window * SECOND)
        if (config.max_msgs_per_subject, config.max_age, config.duplicate_window) == (
            family.per_subject, family.max_age, window,
        ):  # fmt: skip
            return
        if family not in self._warned:
            self._warned.add(family)
            log.warning(
                "stream %s and others were set up for another policy: they keep %d messages a subject for %d s, and"
                " from now on %d for %d s, as this node's settings say; give all nodes the same",
                self.names.stream(number), config.max_msgs_per_subject, config.max_age // SECOND,
                family.per_subject, family.max_age // SECOND,
            )  # fmt: skip
        changed = self._config(number, self._limits(number, limits(config)), api)
        changed |= {
            "first_seq": config.first_seq, "num_replicas": config.num_replicas, "storage": config.storage,
            "metadata": {**config.metadata, **changed["metadata"]},
        }  # fmt: skip
        await api.update(changed)


def limits(config: Config) -> list[Limit]:
    """What a stream has kept and since when, the present last."""
    return msgspec.json.decode(config.metadata.get("ringcast.limits", "[]"), type=list[Limit])


def _counting(config: Config) -> list[Limit]:
    """The present limits, and earlier ones for as long as what they let go would still be there without them."""
    now, history = time.time_ns() // 1000, limits(config)
    longest = max((limit.max_age for limit in history), default=0) // 1000
    earlier = [limit for limit, after in itertools.pairwise(history) if after.since + longest > now]
    return [*earlier, Limit(now, config.max_msgs_per_subject, config.max_age)]


def untrimmed_below(config: Config) -> int:
    """The number of messages below which a subject has lost none to the limit of messages."""
    return min(limit.per_subject for limit in _counting(config))


def shortest_age(config: Config) -> float:
    """Seconds for which every message was kept that no limit of messages let go."""
    return min(limit.max_age for limit in _counting(config)) / SECOND
