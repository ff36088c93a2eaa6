"""What a subscriber asks for, the same over every transport: channels, a position, snapshots."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from gateway.auth import Identity
from gateway.errors import Problem
from gateway.message import MAX_OFFSET, check_channel, check_positions, clip, decode_cursor, encode_cursor, namespace
from gateway.session import Ask
from gateway.settings import Settings, seconds

URL_CURSOR = 4 << 10  # bytes of a cursor in a URL or header: what proxies let through
URL_QUERY = 7 << 10
BODY = 64 << 10  # bytes of a POSTed body or a connect frame
WAIT = 25.0  # seconds that a poll waits unless it says so


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of a session, from a query or a JSON object."""

    channels: list[str] = []
    cursor: str | None = None
    since: str | None = None
    snapshot: bool = False
    wait: Annotated[float, msgspec.Meta(ge=0)] = WAIT  # seconds; polls only


def from_query(query: Mapping[str, str], raw: str, last_event_id: str | None = None) -> Wanted:
    """The parameters of a URL; `Last-Event-ID` beats its cursor. Raises Problem."""
    if len(raw) > URL_QUERY:
        raise Problem("too_large", f"The query has {len(raw)} bytes, at most {URL_QUERY} are taken: POST it as JSON")
    channels = [channel for channel in query.get("channels", "").split(",") if channel]
    if channels and len(encode_cursor(dict.fromkeys(channels, MAX_OFFSET))) > URL_CURSOR:
        raise Problem("too_many_channels", "A cursor of so many channels does not fit into a URL: POST them as JSON")
    snapshot = query.get("snapshot", "false")
    if snapshot not in ("true", "false", "1", "0"):
        raise Problem("bad_request", f"snapshot is true or false, not {clip(snapshot)}")
    try:
        wait = seconds(query["wait"]) if "wait" in query else WAIT
    except ValueError as error:
        raise Problem("bad_request", f"wait: {error}") from None
    cursor = last_event_id or query.get("cursor") or None
    return Wanted(channels, cursor, query.get("since") or None, snapshot in ("true", "1"), wait)


def from_json(body: bytes) -> Wanted:
    """The parameters of a POSTed JSON object. Raises Problem."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("bad_request", f"The body is not an object of the parameters: {error}") from None


_decode = msgspec.json.Decoder(Wanted).decode


def asks(wanted: Wanted, identity: Identity, settings: Settings, cursor_limit: int = BODY) -> list[Ask]:
    """One Ask for each channel: the identity's own, then those that were named.

    Raises Problem `bad_channel`, `forbidden`, `too_many_channels`, `bad_cursor`, `bad_request`.
    """
    named = wanted.channels or list(identity.channels or ())
    channels = list(dict.fromkeys([*identity.own_channels, *named]))
    if len(channels) > settings.max_channels:
        detail = f"One session has {settings.max_channels} channels at most, not {len(channels)}"
        raise Problem("too_many_channels", detail)
    for channel in named:
        permit(channel, identity, settings)
    positions: dict[str, int] = {}
    if wanted.cursor is not None:
        try:
            positions = decode_cursor(wanted.cursor, cursor_limit)
        except ValueError as error:
            raise Problem("bad_cursor", _sentence(error)) from None
    since = parse_since(wanted.since)
    return [ask(channel, positions.get(channel), since, wanted.snapshot, settings) for channel in channels]


def ask(channel: str, position: int | None, since: int | None, snapshot: bool, settings: Settings) -> Ask:
    """A position beats all. Of a table a snapshot beats a time, so that one request may ask for both.

    A snapshot is where the values since that time would have led, and those that did not change since are in it too.
    """
    if position is not None:
        return Ask(channel, position)
    if since is not None and not (snapshot and settings.policy(channel).keyed):
        return Ask(channel, since, quiet=True)
    return Ask(channel, snapshot=snapshot)


def permit(channel: str, identity: Identity, settings: Settings) -> None:
    """Raise Problem `bad_channel`, `forbidden` or `no_presence` unless the identity may read the channel."""
    try:
        check_channel(channel)
    except ValueError as error:
        raise Problem("bad_channel", _sentence(error)) from None
    identity.check_read(channel)
    if channel.startswith("presence:"):
        check_presence(channel.partition(":")[2], settings)


def check_presence(channel: str, settings: Settings) -> None:
    """Raise Problem `no_presence` unless it is told who is there."""
    if not settings.policy(channel).presence:
        name = namespace(channel)
        detail = f"Nobody is told who is in '{name}:' channels: set `[channels.{name}] presence = true`"
        raise Problem("no_presence", detail, channel=channel)


def check_offset(channel: str, offset: int) -> None:
    try:
        check_positions({channel: offset})
    except ValueError as error:
        raise Problem("bad_cursor", _sentence(error)) from None


def _sentence(error: ValueError) -> str:
    text = str(error)
    return text[0].upper() + text[1:]


def parse_since(since: str | None) -> int | None:
    """A position from `latest` (None), `earliest`, a duration ago such as `5m`, or a time of RFC 3339."""
    if since is None or since == "latest":
        return None
    if since == "earliest":
        return 0
    now = int(time.time() * 1e6)
    try:
        return max(0, now - int(float(seconds(since)) * 1e6))
    except (ValueError, OverflowError):  # a duration that is infinite as a float
        pass
    try:
        at = datetime.fromisoformat(since)
        return max(0, int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6))
    except (ValueError, OverflowError):
        detail = f"since is latest, earliest, a duration like 5m or a time like 2026-01-31T12:00:00Z, not {clip(since)}"
        raise Problem("bad_request", detail) from None


def refusal(problem: Problem, request: Any = None) -> dict[str, Any]:
    """The fields of an `error` frame."""
    return {"id": request, "code": problem.code, "message": problem.detail}
