"""How a store is laid out in Redis: names of keys, the scripts, and what their answers mean. No I/O.

Of a partition, all keys share a hash tag, so that one script may touch them on a cluster:

    <prefix>:{<tag>}:p              hash      floor, top, history, take-overs, policy, eras
    <prefix>:{<tag>}:l:<channel>    stream    the log; an entry's id is its offset, beside it prev, edge, the body, and
                                              how many bytes of bodies have come so far
    <prefix>:{<tag>}:k:<channel>    hash      the key table: `:<key>` to "offset expires deleted version body"
    <prefix>:{<tag>}:e              zset      when the values of its tables end, and their deletions are forgotten
    <prefix>:{<tag>}:i:<who>        string    an id that was published lately: "offset digest"
    <prefix>:{<tag>}                subject   of the live messages: "1 before offset history channel body", and
                                              "2 before offset history channel traceparent body" of one with a trace
    <prefix>:meta                   hash      what all nodes agree on: format, partitions, policies

The body is the version of this format, one byte, and MessagePack of the message's parts.
"""

from __future__ import annotations

import binascii
import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from gateway.brokers.base import Page, Receipt, Snapshot, Unreadable, unreadable
from gateway.brokers.chain import Frame
from gateway.errors import Problem
from gateway.message import Draft, Message, partition_of
from gateway.settings import Policy

log = logging.getLogger("ringcast.redis")

FORMAT = b"1"
TRACED = b"2"  # of a live message with a trace, which is published while every node says that it reads them
TOMBSTONE = 86400.0  # seconds that a deletion is remembered for at least
IDS_FULL = "the idempotency table is full: publish slower, or raise idempotency_bytes"
SLOTS = 16384  # of a Redis Cluster
_files = files("gateway.brokers")
_HEAD = _files.joinpath("redis_part.lua").read_text()


class Script:
    """A script and the SHA-1 that EVALSHA names it by."""

    def __init__(self, name: str, head: str = "") -> None:
        self.text = head + _files.joinpath(name).read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


PUBLISH, CHECK = Script("redis_publish.lua", _HEAD), Script("redis_check.lua", _HEAD)
POLICY, CLAIM = Script("redis_policy.lua", _HEAD), Script("redis_claim.lua")
ENDS, FORGET = Script("redis_ends.lua"), Script("redis_forget.lua")


@lru_cache(maxsize=8)
def tags(partitions: int) -> tuple[bytes, ...]:
    """A hash tag for each partition, spread evenly over the slots, and so over any number of servers."""
    wanted: dict[int, list[int]] = {}
    for partition in range(partitions):
        wanted.setdefault(partition * SLOTS // partitions, []).append(partition)
    found: list[bytes] = [b""] * partitions
    number = left = 0
    left = partitions
    while left:
        tag = b"%x" % number
        number += 1
        slot = wanted.get(binascii.crc_hqx(tag, 0) % SLOTS)
        if slot:
            found[slot.pop()] = tag
            left -= 1
    return tuple(found)


class Names:
    """The keys of one deployment."""

    def __init__(self, prefix: str, partitions: int) -> None:
        self.prefix = prefix
        self.partitions = partitions
        self.meta = f"{prefix}:meta".encode()
        self.indexed = f"{prefix}:indexed".encode()
        self._heads = [b"%b:{%b}" % (prefix.encode(), tag) for tag in tags(partitions)]
        self.partition_of_subject = {head: partition for partition, head in enumerate(self._heads)}

    def partition(self, channel: str) -> int:
        return partition_of(channel, self.partitions)

    def subject(self, partition: int) -> bytes:
        return self._heads[partition]

    def part(self, partition: int) -> bytes:
        return self._heads[partition] + b":p"

    def log(self, partition: int, channel: str) -> bytes:
        return b"%b:l:%b" % (self._heads[partition], channel.encode())

    def keys(self, partition: int, channel: str) -> bytes:
        return b"%b:k:%b" % (self._heads[partition], channel.encode())

    def ends(self, partition: int) -> bytes:
        return self._heads[partition] + b":e"

    def id(self, partition: int, draft: Draft) -> bytes:
        who = msgspec.json.encode((draft.principal, draft.channel, draft.id))
        return b"%b:i:%b" % (self._heads[partition], who)


def publish_call(
    names: Names, draft: Draft, policy: Policy, generation: int, earlier: str, known: str, window: float, sharded: bool,
    ends: int | None,
) -> tuple[list[bytes], list[Any]]:  # fmt: skip
    """KEYS and ARGV of the publishing script.

    `known` is the history this node acknowledged in last, or empty; `generation` and `earlier` say which policies it
    knows of; no new id is taken where `window` is 0; a deletion of an expired value names the offset that it `ends`.
    """
    partition = names.partition(draft.channel)
    keys = [names.part(partition), names.log(partition, draft.channel)]
    if draft.idempotent:
        keys.append(names.id(partition, draft))
    life = policy.key_ttl if draft.ttl is None else draft.ttl
    if draft.key is not None:
        keys += [names.keys(partition, draft.channel), names.ends(partition)]
        if draft.deleted:
            life = max(life, TOMBSTONE)
    exempt = draft.channel.startswith("ringcast:")
    arguments = [
        draft.channel, names.subject(partition), encode_body(draft), int(policy.history_ttl * 1e6),
        policy.history_size, policy.slow, known, draft.digest().hex() if draft.idempotent else "",
        int(window * 1000), draft.key or "", ",".join(map(str, draft.version or ())),
        "1" if draft.deleted else "0", max(1, int(life * 1000)), 0 if exempt else policy.max_keys,
        "SPUBLISH" if sharded else "PUBLISH", "" if ends is None else ends, generation, earlier,
        policy.history_bytes, policy.max_keys, draft.trace or "",
    ]  # fmt: skip
    return keys, arguments


def receipt(draft: Draft, answer: Sequence[Any]) -> tuple[Receipt, str] | None:
    """What the publishing script answered, with the history; None where the store must be asked or told first.

    Raises Problem `id_reused`, `ids_full`, `stale_version`, `too_many_keys`.
    """
    match answer[0]:
        case b"ok":
            return Receipt(draft.channel, int(answer[1]), draft.id), answer[2].decode()
        case b"duplicate":
            if answer[2].decode() != draft.digest().hex():
                detail = f"id {draft.id!r} was used for {draft.channel} with another body: a new message needs a new id"
                raise Problem("id_reused", detail, offset=int(answer[1]))
            return Receipt(draft.channel, int(answer[1]), draft.id, duplicate=True), answer[3].decode()
        case b"history" | b"policy":
            return None
        case b"ids":
            raise Problem("ids_full", IDS_FULL, retry_after=5)
        case b"stale":
            version = [int(number) for number in answer[2].split(b",")] if answer[2] else []
            raise Problem(
                "stale_version",
                f"key {draft.key!r} of {draft.channel} holds version {version}: only a higher one replaces it",
                current={"offset": int(answer[1]), "version": version},
            )
        case b"keys":
            detail = f"{draft.channel} has as many keys as it may ({answer[1]}): delete some, or raise max_keys"
            raise Problem("too_many_keys", detail)
    raise RuntimeError(f"the publishing script answered {answer!r}")


_pack = msgspec.msgpack.Encoder().encode
_number = msgspec.json.Decoder(int).decode  # in two thirds of the time that int() takes
_unpack = msgspec.msgpack.Decoder(tuple[str, str, bytes, str | None, tuple[int, ...] | None, bool]).decode


def encode_body(draft: Draft) -> bytes:
    return FORMAT + _pack((draft.id, draft.event, draft.data, draft.key, draft.version, draft.deleted))


def decode_body(channel: str, offset: int, body: bytes, trace: str | None = None) -> Message:
    """A message of the log or a live frame. Its time is its offset's: both are the store's clock.

    Raises Unreadable.
    """
    if body[:1] != FORMAT:
        raise Unreadable(f"a message of {channel} is stored in format {body[:1].decode('latin-1')!r}")
    try:
        id, event, data, key, version, deleted = _unpack(body[1:])
    except msgspec.DecodeError as error:
        raise Unreadable(f"a message of {channel} is none of ours: {error}") from error
    return Message(channel, offset, id, event, data, offset // 1000, key, version, deleted, trace)


def decode_frame(partition: int, payload: bytes) -> Frame:
    """A live message as the publishing script announced it. Raises ValueError, also Unreadable."""
    form, before, offset, history, channel, body = payload.split(b" ", 5)
    trace = None
    if form != FORMAT:
        if form != TRACED:
            raise Unreadable(f"a live message has format {form[:8].decode('latin-1')!r}")
        told, _, body = body.partition(b" ")
        trace = told.decode()
    message = decode_body(channel.decode(), _number(offset), body, trace)
    return Frame(partition, _number(before), history.decode(), message)


# ---------------------------------------------------------------- views


@dataclass(frozen=True, slots=True)
class Part:
    """A partition as a view of the store has it."""

    floor: int
    top: int
    history: str
    policy: int = 0  # the generation it was last written under, 0 for none
    eras: tuple[tuple[int, int], ...] = ()  # earlier ones, and the highest offset of each


PART_FIELDS = ("floor", "top", "history", "policy", "eras")


def decode_part(words: Sequence[bytes | None]) -> Part:
    """From the words of PART_FIELDS, the first three of which are there."""
    floor, top, history, policy, eras = words
    ended = (era.partition(b":") for era in (eras or b"").split())
    return Part(
        int(floor or 0), int(top or 0), (history or b"").decode(), int(policy or 0),
        tuple((int(generation), int(end)) for generation, _, end in ended),
    )  # fmt: skip


class Value(NamedTuple):
    """A value of the key table, without its message."""

    offset: int
    expires: int  # microseconds
    deleted: bool
    version: tuple[int, ...] | None


def decode_value_head(value: bytes) -> Value:
    offset, expires, deleted, version, _ = value.split(b" ", 4)
    numbers = tuple(int(number) for number in version.split(b",")) if version else None
    return Value(int(offset), int(expires), deleted == b"1", numbers)


def decode_value(channel: str, value: bytes) -> tuple[Message, int]:
    """A value of the key table, and when it expires in microseconds. Raises Unreadable."""
    offset, expires, _, _, body = value.split(b" ", 4)
    return decode_body(channel, int(offset), body), int(expires)


def entry_offset(entry: Sequence[Any]) -> int:
    return int(entry[0].partition(b"-")[0])


def page(
    channel: str, since: int, limit: int, size: int, latest: bool, floor: int, empty: int, top: int,
    held: Sequence[Any], after: Sequence[Any], table: Mapping[bytes, bytes],
) -> Page:  # fmt: skip
    """Put one atomic view together: an entry at or below `since`, those after it, the key table where it is `latest`.

    Below `floor` nothing can be proven, and what was at or below `empty` may have gone by its age.
    """
    shown = bool(held)
    if not shown:
        shown = (int(after[0][1][b"prev"]) if after else empty) <= since
        if latest:  # a table that is gone, or began anew, has forgotten all that could have gone by then
            shown = shown and int(table.get(b"", b"0") if table else empty) <= since
    keyed: list[Message] = []
    try:
        found = [decode_body(channel, entry_offset(entry), entry[1][b"m"]) for entry in after[:limit]]
        keyed = [decode_value(channel, value)[0] for name, value in table.items() if name[:1] == b":"] if latest else []
    except Unreadable as error:
        shown, found = False, _readable(channel, after[:limit])
        log.error("%s: this release cannot read all of it, and readers are told that some is missing: upgrade this"
                  " node (%s)", channel, error)  # fmt: skip
    rest = len(after) > limit
    until = entry_offset(after[limit - 1]) if rest else top
    if latest:
        found = _newest(found, keyed, since, until)
    messages: list[Message] = []
    used = 0
    for message in found:
        if len(messages) >= limit or (messages and used + message.size > size):
            return Page(since, shown, floor, top, messages, more=True)
        messages.append(message)
        used += message.size
    return Page(since, shown, floor, top, messages, more=rest, until=until)


def _readable(channel: str, entries: Sequence[Any]) -> list[Message]:
    found: list[Message] = []
    for entry in entries:
        with suppress(Unreadable):
            found.append(decode_body(channel, entry_offset(entry), entry[1][b"m"]))
    return found


def _newest(found: list[Message], keyed: list[Message], since: int, until: int) -> list[Message]:
    """The unkeyed messages, and of each key the newest value where that lies within the page."""
    unkeyed = [message for message in found if message.key is None]
    newest = {message.key: message for message in found if message.key is not None}
    newest.update((message.key, message) for message in keyed if message.offset > since and message.key is not None)
    within = [message for message in newest.values() if message.offset <= until]
    return sorted([*unkeyed, *within], key=lambda message: message.offset)


def snapshot(channel: str, now: int, top: int, table: Mapping[bytes, bytes]) -> Snapshot:
    """The table's values of this moment. Raises Problem `unavailable` for one that this release cannot read."""
    try:
        values = [decode_value(channel, value) for name, value in table.items() if name[:1] == b":"]
    except Unreadable as error:
        log.error("%s: this release cannot read its values: upgrade this node (%s)", channel, error)
        raise unreadable() from error
    found = [message for message, expires in values if not message.deleted and expires > now]
    return Snapshot(sorted(found, key=lambda message: message.offset), top)
