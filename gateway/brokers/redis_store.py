"""How a store is laid out in Redis: names of keys, the scripts, and what their answers mean. No I/O.

Of a partition, all keys share a hash tag, so that one script may touch them on a cluster:

    <prefix>:{<tag>}:p              hash      floor, top, history, take-overs
    <prefix>:{<tag>}:l:<channel>    stream    the log; an entry's id is its offset, beside it prev, edge and the body
    <prefix>:{<tag>}:k:<channel>    hash      the key table: `:<key>` to "offset expires deleted version body"
    <prefix>:{<tag>}:i:<who>        string    an id that was published lately: "offset digest"
    <prefix>:{<tag>}                subject   of the live messages: "1 before offset history channel body"

The body is the version of this format, one byte, and MessagePack of the message's parts.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import msgspec

from gateway.brokers.base import Page, Receipt, Snapshot
from gateway.brokers.chain import Frame
from gateway.errors import Problem
from gateway.message import Draft, Message
from gateway.settings import Policy

FORMAT = b"1"
SLOTS = 16384  # of a Redis Cluster
_files = files("gateway.brokers")
_HEAD = _files.joinpath("redis_part.lua").read_text()


class Script:
    """A script and the SHA-1 that EVALSHA names it by."""

    def __init__(self, name: str) -> None:
        self.text = _HEAD + _files.joinpath(name).read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


PUBLISH, CHECK = Script("redis_publish.lua"), Script("redis_check.lua")


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
        self._heads = [b"%b:{%b}" % (prefix.encode(), tag) for tag in tags(partitions)]
        self.partition_of_subject = {head: partition for partition, head in enumerate(self._heads)}

    def subject(self, partition: int) -> bytes:
        return self._heads[partition]

    def part(self, partition: int) -> bytes:
        return self._heads[partition] + b":p"

    def log(self, partition: int, channel: str) -> bytes:
        return b"%b:l:%b" % (self._heads[partition], channel.encode())

    def keys(self, partition: int, channel: str) -> bytes:
        return b"%b:k:%b" % (self._heads[partition], channel.encode())

    def id(self, partition: int, draft: Draft) -> bytes:
        who = msgspec.json.encode((draft.principal, draft.channel, draft.id))
        return b"%b:i:%b" % (self._heads[partition], who)


def publish_call(
    names: Names, partition: int, draft: Draft, policy: Policy, known: str, window: float, sharded: bool
) -> tuple[list[bytes], list[Any]]:
    """KEYS and ARGV of the publishing script; `known` is the history this node acknowledged in last, or empty."""
    keys = [names.part(partition), names.log(partition, draft.channel)]
    if draft.idempotent:
        keys.append(names.id(partition, draft))
    life = policy.key_ttl if draft.ttl is None else draft.ttl
    if draft.key is not None:
        keys.append(names.keys(partition, draft.channel))
        if draft.deleted:
            life = max(life, 86400.0)
    exempt = draft.channel.startswith("ringcast:")
    arguments = [
        draft.channel, names.subject(partition), encode_body(draft), int(policy.history_ttl * 1e6),
        policy.history_size, policy.slow, known, draft.digest().hex() if draft.idempotent else "",
        max(1, int(window * 1000)), draft.key or "", ",".join(map(str, draft.version or ())),
        "1" if draft.deleted else "0", max(1, int(life * 1000)), 0 if exempt else policy.max_keys,
        "SPUBLISH" if sharded else "PUBLISH", "",
    ]  # fmt: skip
    return keys, arguments


def receipt(draft: Draft, answer: Sequence[Any]) -> tuple[Receipt, str] | None:
    """What the publishing script answered, with the history; None where the store must be checked first.

    Raises Problem `id_reused`, `stale_version`, `too_many_keys`.
    """
    match answer[0]:
        case b"ok":
            return Receipt(draft.channel, int(answer[1]), draft.id), answer[2].decode()
        case b"duplicate":
            if answer[2].decode() != draft.digest().hex():
                detail = f"id {draft.id!r} was used for {draft.channel} with another body: a new message needs a new id"
                raise Problem("id_reused", detail, offset=int(answer[1]))
            return Receipt(draft.channel, int(answer[1]), draft.id, duplicate=True), answer[3].decode()
        case b"history":
            return None
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
_unpack = msgspec.msgpack.Decoder(tuple[str, str, bytes, str | None, tuple[int, ...] | None, bool]).decode


def encode_body(draft: Draft) -> bytes:
    return FORMAT + _pack((draft.id, draft.event, draft.data, draft.key, draft.version, draft.deleted))


def decode_body(channel: str, offset: int, body: bytes) -> Message:
    """A message of the log or a live frame. Its time is its offset's: both are the store's clock."""
    id, event, data, key, version, deleted = _unpack(memoryview(body)[1:])
    return Message(channel, offset, id, event, data, offset // 1000, key, version, deleted)


def decode_frame(partition: int, payload: bytes) -> Frame:
    """A live message as the publishing script announced it."""
    _, before, offset, history, channel, body = payload.split(b" ", 5)
    return Frame(partition, int(before), history.decode(), decode_body(channel.decode(), int(offset), body))


def entry_offset(entry: Sequence[Any]) -> int:
    return int(entry[0].partition(b"-")[0])


def page(
    channel: str, since: int, limit: int, size: int, policy: Policy, now: int, part: Sequence[bytes],
    held: Sequence[Any], after: Sequence[Any], table: Mapping[bytes, bytes],
) -> Page:  # fmt: skip
    """Put one atomic view together: floor and top, an entry at or below `since`, those after it, the key table."""
    floor, top = int(part[0]), int(part[1])
    if held:
        shown = True
    else:
        empty = max(floor, min(top, now - int(policy.history_ttl * 1e6)))
        shown = (int(after[0][1][b"prev"]) if after else empty) <= since
        if policy.slow == "latest":
            shown = shown and int(table.get(b"", b"0")) <= since
    found = [decode_body(channel, entry_offset(entry), entry[1][b"m"]) for entry in after[:limit]]
    rest = len(after) > limit
    until = found[-1].offset if rest else top
    if policy.slow == "latest":
        found = _newest(channel, found, table, since, until)
    messages: list[Message] = []
    used = 0
    for message in found:
        if len(messages) >= limit or (messages and used + message.size > size):
            return Page(since, shown, floor, top, messages, more=True)
        messages.append(message)
        used += message.size
    return Page(since, shown, floor, top, messages, more=rest, until=until)


def _newest(
    channel: str, found: list[Message], table: Mapping[bytes, bytes], since: int, until: int
) -> list[Message]:
    """The unkeyed messages, and of each key the newest value where that lies within the page."""
    unkeyed = [message for message in found if message.key is None]
    newest = {message.key: message for message in found if message.key is not None}
    for name, value in table.items():
        if name[:1] == b":":
            message, _ = decode_value(channel, value)
            if message.offset > since:
                newest[name[1:].decode()] = message
    within = [message for message in newest.values() if message.offset <= until]
    return sorted([*unkeyed, *within], key=lambda message: message.offset)


def decode_value(channel: str, value: bytes) -> tuple[Message, int]:
    """A value of the key table, and when it expires in microseconds."""
    offset, expires, _, _, body = value.split(b" ", 4)
    return decode_body(channel, int(offset), body), int(expires)


def snapshot(channel: str, now: int, part: Sequence[bytes], table: Mapping[bytes, bytes]) -> Snapshot:
    values = [decode_value(channel, value) for name, value in table.items() if name[:1] == b":"]
    found = [message for message, expires in values if not message.deleted and expires > now]
    return Snapshot(sorted(found, key=lambda message: message.offset), int(part[1]))
