"""From a publisher's bytes to drafts: strict JSON in, checked drafts or refusals out; no I/O.

`data` is never rebuilt. Its bytes are checked here once and passed on as they came, only a line break between two
tokens becomes a space, because a line break would end the `data:` field of a server-sent event. What strict JSON is
(RFC 8259 in UTF-8: no NaN, no byte order mark, no lone surrogate escape) msgspec's skipping scanner checks inside a
`Raw` as well as outside of it, except for the encoding itself, which `decode` checks first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import msgspec

from gateway.errors import Problem
from gateway.message import RESERVED, Draft, check_channel, check_event, clip, namespace, new_id
from gateway.settings import Settings, seconds
from gateway.traceparent import check_traceparent

MAX_KEY = 200  # characters of a key, and of an id
MAX_VERSION = 5  # numbers of a version
MAX_NUMBER = 2**53 - 1  # of each of them
MAX_TTL = 3650 * 86400.0  # seconds
REMEMBERED = 300  # characters of an event that is remembered to be well formed, or not; all that are have fewer

T = TypeVar("T")
_TARGETS = ("channel", "channels", "user", "users")
_NO_OTHERS = (None, None, None)
_LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """One publish as its publisher writes it; null means the same as leaving a field out, except for `data`."""

    channel: str | None = None
    channels: list[str] | None = None
    user: str | None = None
    users: list[str] | None = None
    event: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    key: str | None = None
    version: list[int] | None = None
    deleted: bool | None = None
    ttl: float | str | None = None  # seconds, or a duration like "30s"
    id: str | None = None
    traceparent: str | None = None  # of this message, where the request's own is not


@dataclass(slots=True)
class Refusal:
    """Why nothing can be published to one of the targets; the others are not touched by it."""

    channel: str
    problem: Problem


_decoder = msgspec.json.Decoder(Body)


def body_limit(settings: Settings) -> int:
    """The bytes one publish may have: its data, its targets by name, and room for the other fields."""
    return settings.max_message + (settings.max_targets << 10) + (16 << 10)


def parse(raw: bytes, settings: Settings, principal: str, header_id: str | None = None) -> list[Draft | Refusal]:
    """The drafts of one publish, one for each distinct target in the order of their first mention.

    `header_id` is what an Idempotency-Key header gave. Raises Problem when the publish as a whole is refused; what is
    wrong with one target alone is a Refusal in its place.
    """
    body = decode(raw)
    if header_id is not None:
        if body.id is not None and body.id != header_id:
            raise _bad("The Idempotency-Key header and the field id differ: give one of them", "id")
        body.id = header_id
    return drafts(body, settings, principal)


def decode(raw: bytes) -> Body:
    """Read strict JSON; raises Problem `bad_json`, `too_deep`, or `bad_request` for an unknown or mistyped field."""
    return read(raw, _decoder, f"a publish takes {', '.join(Body.__struct_fields__)}")


def read(raw: bytes, decoder: msgspec.json.Decoder[T], hint: str) -> T:
    """Read strict JSON of a type; raises Problem as `decode` does, with `hint` for what is not of the type."""
    try:
        if not raw.isascii():
            raw.decode()
        return decoder.decode(raw)
    except UnicodeDecodeError as error:
        raise Problem("bad_json", f"Byte {error.start} is not UTF-8: JSON travels as UTF-8 only") from error
    except msgspec.ValidationError as error:
        raise _bad(f"{clip(str(error), 300)[1:-1]}; {hint}") from error
    except msgspec.DecodeError as error:
        hint = "send strict JSON (RFC 8259) in UTF-8, without lone surrogate escapes"
        raise Problem("bad_json", f"{error}: {hint}") from error
    except RecursionError as error:
        raise Problem("too_deep", "The body is nested hundreds of levels deep") from error


def drafts(body: Body, settings: Settings, principal: str) -> list[Draft | Refusal]:
    """Check a decoded publish; see `parse`."""
    targets = _targets(body, settings)
    event = "message" if body.event is None else body.event
    fault = _fault_of(event)
    if fault is not None:
        raise Problem("bad_event", fault, field="event")
    data = _check_data(body, settings)
    ttl = _check_keyed(body)
    version = None if body.version is None else tuple(body.version)
    idempotent = body.id is not None
    id = new_id() if body.id is None else _check_name(body.id, "id")
    trace = check_traceparent(body.traceparent) if settings.tracing else None
    found: list[Draft | Refusal] = []
    for channel in targets:
        problem = _refused(channel, body, settings)
        if problem is None:
            found.append(
                Draft(channel, event, data, id, body.key, version, bool(body.deleted), ttl, principal, idempotent,
                      trace)
            )  # fmt: skip
        else:
            found.append(Refusal(channel, problem))
    return found


def check_data(raw: bytes, settings: Settings) -> bytes:
    """Return the bytes of a JSON value, known to be strict, on one line; raises Problem `too_large` or `too_deep`."""
    if len(raw) > settings.max_message:
        raise Problem("too_large", f"data has {len(raw)} bytes, at most {settings.max_message} are taken",
                      field="data", limit=settings.max_message)  # fmt: skip
    if raw.count(b"[") + raw.count(b"{") > settings.max_depth and not _shallow(raw, settings.max_depth):
        raise Problem("too_deep", f"data is nested more than {settings.max_depth} levels deep: flatten it",
                      field="data", limit=settings.max_depth)  # fmt: skip
    # Strict JSON holds no raw line break inside a string, so that these are between tokens.
    return raw.translate(_LINE_BREAKS) if b"\n" in raw or b"\r" in raw else raw


def check_id(values: list[str]) -> str | None:
    """The id that Idempotency-Key headers give, if any; raises Problem when it cannot be used unchanged."""
    if not values:
        return None
    if len(values) > 1:
        raise _bad("There is more than one Idempotency-Key header: send one", "id")
    if not values[0].isascii():
        raise _bad("Idempotency-Key must be ASCII: put any other id into the body's field id", "id")
    return _check_name(values[0], "id")


def _shallow(raw: bytes, depth: int) -> bool:
    """Whether no bracket is nested deeper than `depth`: each pass takes the innermost level away."""
    outside = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(depth):
        if not brackets:
            break
        brackets = brackets.replace(b"[]", b"")
    return not brackets


def _targets(body: Body, settings: Settings) -> list[str]:
    if body.channel is not None and (body.channels, body.user, body.users) == _NO_OTHERS:
        return [body.channel]
    named = [name for name in _TARGETS if getattr(body, name) is not None]
    if len(named) != 1:
        was = f"there are {', '.join(named)}" if named else "there is none"
        raise _bad(f"Exactly one of channel, channels, user and users says where to publish: {was}")
    if body.user is not None:
        return ["user:" + body.user]
    if body.channels is not None:
        targets = list(dict.fromkeys(body.channels))
    else:
        targets = ["user:" + user for user in dict.fromkeys(body.users or ())]
    if not targets:
        raise _bad(f"{named[0]} is empty: name at least one", named[0])
    if len(targets) > settings.max_targets:
        raise Problem("too_many_channels", f"{named[0]} has {len(targets)} entries, at most {settings.max_targets} are "
                      "taken: split it", field=named[0], limit=settings.max_targets)  # fmt: skip
    return targets


@lru_cache(maxsize=256)
def _fault(event: str) -> str | None:
    """The sentence of what is wrong with an event. Most messages have one that was looked at lately."""
    try:
        check_event(event)
    except ValueError as error:
        return str(error)
    return None


def _fault_of(event: str) -> str | None:
    return _fault(event) if len(event) <= REMEMBERED else _fault.__wrapped__(event)


def _check_data(body: Body, settings: Settings) -> bytes:
    raw = bytes(body.data)
    if raw:
        return check_data(raw, settings)
    if not body.deleted:
        raise _bad("data is missing: give any JSON value, null where there is nothing to say", "data")
    return b"null"


def _check_keyed(body: Body) -> float | None:
    """Check what goes with a key; the ttl in seconds."""
    if body.key is None:
        for name, value in (("version", body.version), ("deleted", body.deleted), ("ttl", body.ttl)):
            if value is not None and value is not False and value != 0:
                raise _bad(f"{name} belongs to a key: give key too", name)
        return None
    _check_name(body.key, "key")
    if body.version is not None and not (
        1 <= len(body.version) <= MAX_VERSION and all(0 <= number <= MAX_NUMBER for number in body.version)
    ):
        raise _bad(f"version must be a list of 1 to {MAX_VERSION} integers between 0 and 2^53 - 1", "version")
    if body.ttl is None:
        return None
    try:
        ttl = float(seconds(body.ttl))
    except ValueError as error:
        raise _bad(f"ttl: {clip(str(error), 120)[1:-1]}", "ttl") from error
    if not math.isfinite(ttl) or not 0 < ttl <= MAX_TTL:
        raise _bad("ttl must be more than 0 seconds and at most 3650d", "ttl")
    return ttl


def _check_name(name: str, field: str) -> str:
    if not 1 <= len(name) <= MAX_KEY:
        raise _bad(f"{field} must have 1 to {MAX_KEY} characters", field)
    if any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in name):
        raise _bad(f"{field} must not hold control characters", field)
    return name


def _refused(channel: str, body: Body, settings: Settings) -> Problem | None:
    try:
        check_channel(channel)
    except ValueError as error:
        return Problem("bad_channel", str(error))
    space = namespace(channel)
    if space in RESERVED:
        return Problem("reserved_channel", f"'{space}:' is the gateway's own namespace: publish to another")
    if body.key is not None and not settings.policy(channel).keyed:
        return Problem("key_not_allowed", f"key needs a keyed namespace: set `[channels.{space}] keyed = true`")
    return None


def _bad(detail: str, field: str | None = None) -> Problem:
    return Problem("bad_request", detail) if field is None else Problem("bad_request", detail, field=field)
