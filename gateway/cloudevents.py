"""CloudEvents 1.0 as publishes: structured, batched and binary over HTTP; no I/O.

An event's `subject` is the channel, its `type` the message's event and its `data` the message's data. `source` and `id`
together identify an event wherever it comes from, so together they are the message's id, under which a repeat is stored
once. `traceparent` is
its trace. Other attributes (`time`, `dataschema`, extensions) have no place in a message and are not passed on.

Followed are the CloudEvents specification 1.0.2, its JSON event format and its HTTP protocol binding.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import msgspec

from gateway.errors import Problem
from gateway.message import Draft
from gateway.publish import MAX_KEY, Body, Refusal, drafts, read
from gateway.settings import Settings

STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"
MAX_EVENTS = 1000  # of a batch

_REQUIRED = ("specversion", "id", "source", "type", "subject")
_JSON_TYPE = re.compile(r"(application/json|text/json|[\w.!#$&^-]+/[\w.!#$&^-]+\+json)\Z")


class Event(msgspec.Struct):
    """The attributes that a publish is made of; all others are passed over."""

    specversion: str = ""
    id: str = ""
    source: str = ""
    type: str = ""
    subject: str = ""
    data: msgspec.Raw = msgspec.Raw()
    data_base64: msgspec.Raw = msgspec.Raw()
    traceparent: str | None = None  # of the extension for distributed tracing


_one = msgspec.json.Decoder(Event)
_raws = msgspec.json.Decoder(list[msgspec.Raw])
_HINT = "a CloudEvent has the strings specversion, id, source, type and subject"


def is_binary(headers: Mapping[str, str]) -> bool:
    """Whether the attributes travel as headers and the body is the data alone."""
    return "ce-specversion" in headers


def parse_structured(raw: bytes, settings: Settings, principal: str) -> list[Draft | Refusal]:
    """The draft of one event in JSON; raises Problem."""
    return _drafts(read(raw, _one, _HINT), settings, principal)


def parse_batch(raw: bytes, settings: Settings, principal: str) -> list[Draft | Refusal]:
    """One draft for each event of a JSON array, or why there is none; raises Problem where it is no such array."""
    events = read(raw, _raws, "a batch is an array of CloudEvents")
    if len(events) > MAX_EVENTS:
        raise Problem("too_large", f"The batch has {len(events)} events, at most {MAX_EVENTS} are taken: split it",
                      limit=MAX_EVENTS)  # fmt: skip
    found: list[Draft | Refusal] = []
    for each in events:
        event = Event()
        try:
            event = read(bytes(each), _one, _HINT)
            found += _drafts(event, settings, principal)
        except Problem as problem:
            found.append(Refusal(event.subject, problem))
    return found


def parse_binary(
    headers: Mapping[str, str], kind: str | None, raw: bytes, settings: Settings, principal: str
) -> list[Draft | Refusal]:
    """The draft of an event whose attributes are headers `ce-...`; `kind` is the body's media type. Raises Problem."""
    if kind is not None and not _JSON_TYPE.match(kind):
        raise Problem("unsupported_media_type", f"A message's data is JSON: {kind[:80]} cannot be passed on")
    data = read(raw, _any, "the data is JSON") if raw.strip() else msgspec.Raw()
    specversion, id, source, type, subject = (_unescape(name, headers.get(f"ce-{name}", "")) for name in _REQUIRED)
    trace = headers.get("ce-traceparent")
    return _drafts(Event(specversion, id, source, type, subject, data, traceparent=trace), settings, principal)


_any = msgspec.json.Decoder(msgspec.Raw)


def _drafts(event: Event, settings: Settings, principal: str) -> list[Draft | Refusal]:
    for name in _REQUIRED:
        if not getattr(event, name):
            why = "it says which channel to publish to" if name == "subject" else "every CloudEvent has it"
            raise Problem("bad_request", f"{name} is missing: {why}", field=name)
    if event.specversion != "1.0":
        raise Problem("bad_request", f"specversion is {event.specversion[:20]!a}: only 1.0 is understood",
                      field="specversion")  # fmt: skip
    if bytes(event.data_base64) not in (b"", b"null"):
        raise Problem("bad_request", "A message's data is JSON: binary data cannot be passed on", field="data_base64")
    body = Body(channel=event.subject, event=event.type, id=message_id(event.source, event.id),
                data=event.data if bytes(event.data) else msgspec.Raw(b"null"),
                traceparent=event.traceparent)  # fmt: skip
    return drafts(body, settings, principal)


def message_id(source: str, id: str) -> str:
    """One id of both. A source is a URI reference and holds no space, so no two pairs share one. Raises Problem."""
    if " " in source:
        raise Problem("bad_request", "source holds a space: it is a URI reference", field="source")
    together = f"{source} {id}"
    if len(together) <= MAX_KEY:
        return together
    return "sha256:" + hashlib.sha256(together.encode(errors="surrogatepass")).hexdigest()


def _unescape(name: str, value: str) -> str:
    """A header's value is percent-encoded UTF-8 (HTTP binding, 3.1.3.2), in double quotes where its sender likes."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except UnicodeError as error:
        raise Problem("bad_request", f"The header ce-{name} is not percent-encoded UTF-8", field=name) from error
