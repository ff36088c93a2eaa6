"""What a ticket is asked for with, and what may be granted: never more than whoever asks holds; no I/O."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import msgspec

from gateway.errors import Problem
from gateway.identity import Identity, check_patterns, user_identity
from gateway.message import check_channel, clip, format_time, partition_of
from gateway.settings import Settings, seconds
from gateway.tickets import Tickets

MAX_TTL = 30 * 86400.0  # seconds


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/tickets."""

    use: Literal["connect", "stream"]
    user: str | None = None
    channels: list[str] | None = None  # patterns of a connect ticket, channels of a stream ticket
    publish: list[str] | None = None  # patterns
    ttl: float | str | None = None  # seconds, or a duration
    info: Any = None  # what presence shows of the user


_decode = msgspec.json.Decoder(Wanted).decode


def ticket(raw: bytes, holder: Identity, tickets: Tickets, settings: Settings) -> dict[str, Any]:
    """The answer to a request for a ticket by `holder`.

    A server makes tickets for any user; others for themselves alone, with all of their rights or some of them. A
    `connect` ticket opens one connection, which lasts `ttl` at most. A `stream` ticket reads the channels it names
    (none named: the user's own) for `ttl`. Raises Problem.
    """
    try:
        wanted = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = 'ask for a ticket as {"use": "connect"}'
        raise Problem("bad_request", f"{clip(str(error), 300)[1:-1]}: {hint}") from error
    ttl = _ttl(wanted.ttl)
    try:
        identity = _for_user(wanted, holder, ttl) if holder.server else _for_itself(wanted, holder, ttl)
        if wanted.use == "connect":
            made = tickets.connect(identity)
            about = list(identity.own_channels)
        else:
            if wanted.publish:
                raise ValueError("publish is not for a stream ticket, which only reads: leave it out")
            about = _channels(wanted, identity, settings)
            made = tickets.stream(identity, about, ttl)
    except ValueError as error:
        raise Problem("bad_request", str(error)) from error
    answer: dict[str, Any] = {"ticket": made.text, "expires": format_time(round(made.expires * 1000))}
    if about:
        answer["partition"] = partition_of(about[0], settings.partitions)
    return answer


def _for_user(wanted: Wanted, server: Identity, ttl: float | None) -> Identity:
    """What a server grants: the rights it names, to the user it names or, without one, in its own name."""
    expires = None if ttl is None else time.time() + ttl
    # A stream ticket's channels are granted by being named; the patterns of a connect ticket are what it may read.
    if wanted.user is not None:
        return user_identity(wanted.user, wanted.channels, wanted.publish, expires, time.time(), wanted.info)
    if wanted.info is not None:
        raise ValueError("info is what presence shows of a user: name the user, or leave it out")
    read, publish = check_patterns("channels", wanted.channels), check_patterns("publish", wanted.publish)
    return Identity(server.principal, read=read, publish=publish, expires=expires)


def _for_itself(wanted: Wanted, holder: Identity, ttl: float | None) -> Identity:
    """The holder's own rights, or those of them that it asks for."""
    if wanted.user is not None and wanted.user != holder.subject:
        raise Problem("forbidden", f"{holder.principal} may not have tickets of another user: leave user out")
    if wanted.info is not None:
        raise Problem("forbidden", f"{holder.principal} is shown with the `info` of its token: leave info out")
    read, publish = check_patterns("channels", wanted.channels), check_patterns("publish", wanted.publish)
    if wanted.use == "connect":
        own = (*holder.own_channels, *(holder.channels or ()))
        _check_covered("read", read, (*holder.read, *own) if holder.channels is None else own)
    _check_covered("publish to", publish, holder.publish)
    ends = [end for end in (holder.expires, None if ttl is None else time.time() + ttl) if end is not None]
    narrowed = msgspec.structs.replace(holder, expires=min(ends, default=None))
    if wanted.use == "connect" and wanted.channels is not None:
        narrowed = msgspec.structs.replace(narrowed, read=read)
    if wanted.publish is not None:
        narrowed = msgspec.structs.replace(narrowed, publish=publish)
    return narrowed


def _channels(wanted: Wanted, identity: Identity, settings: Settings) -> list[str]:
    channels = list(dict.fromkeys(wanted.channels if wanted.channels is not None else identity.own_channels))
    if not channels:
        raise ValueError("channels is missing: a stream ticket is bound to the channels it names, or to a user's own")
    if len(channels) > settings.max_channels:
        raise Problem("too_many_channels", f"At most {settings.max_channels} channels fit one session")
    for channel in channels:
        if channel.endswith("*"):
            raise ValueError(f"{clip(channel)} is a pattern: a stream ticket names its channels one by one")
        check_channel(channel)
    return channels


def _check_covered(verb: str, asked: tuple[str, ...], held: tuple[str, ...]) -> None:
    """Raise Problem("forbidden") unless each pattern asked for matches only what one that is held matches."""
    prefixes = tuple(pattern[:-1] for pattern in held if pattern.endswith("*"))
    for pattern in asked:
        if pattern not in held and not pattern.removesuffix("*").startswith(prefixes):
            raise Problem("forbidden", f"Your credentials may not {verb} {clip(pattern)}: ask for less")


def _ttl(value: float | str | None) -> float | None:
    if value is None:
        return None
    try:
        ttl = float(seconds(value))
    except ValueError as error:
        raise Problem("bad_request", f"ttl: {clip(str(error), 120)[1:-1]}", field="ttl") from error
    if not math.isfinite(ttl) or not 0 < ttl <= MAX_TTL:
        raise Problem("bad_request", "ttl must be more than 0 seconds and at most 30d", field="ttl")
    return ttl
