"""The words of presence: the tables nodes vouch in, their keys and values, and what members are told as."""

from __future__ import annotations

import hashlib

import msgspec

from gateway.message import PRESENCE_TABLE

LIFE = 86400.0  # seconds that an entry or a member is kept for without being told again; it is, twice in that time
EVENTS = ("join", "update", "leave")

_NONE = msgspec.Raw(b"null")


class Entry(msgspec.Struct, frozen=True):
    """What a node says of one of its users. A field that a later version adds is passed over by this one."""

    channel: str
    user: str
    on: bool
    info: msgspec.Raw = _NONE


class Member(msgspec.Struct, frozen=True):
    """What is told of a member."""

    user: str
    info: msgspec.Raw = _NONE


def table(partition: int) -> str:
    """The channel in which nodes vouch for the users of a partition's channels; it lies in that partition."""
    return f"{PRESENCE_TABLE}{partition}"


def presence(channel: str) -> str:
    return f"presence:{channel}"


def key_of(run: str, channel: str, user: str) -> str:
    """The key of an entry: of one run of a node, one channel and one user, and short for every store."""
    return f"{run}.{hashlib.sha256(f'{channel} {user}'.encode()).hexdigest()[:32]}"


def run_of(key: str) -> str:
    return key.partition(".")[0]


encode = msgspec.json.Encoder().encode
decode_entry = msgspec.json.Decoder(Entry).decode
decode_member = msgspec.json.Decoder(Member).decode
