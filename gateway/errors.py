"""Everything the gateway refuses, and the one table of codes that says so over every transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of refusal is told: over HTTP, in a close frame or goodbye, and to a person."""

    status: int
    close: int
    title: str


# Close codes (WebSocket close, SSE goodbye, poll problem): 40xx do not come back unchanged, 41xx come back after a
# back-off with the cursor, 42xx come back at once.
UNAUTHORISED, FORBIDDEN, BAD_REQUEST, TOO_LARGE = 4001, 4003, 4008, 4009
DRAINING, SERVER_ERROR, TOO_SLOW, RATE_LIMITED, FULL = 4100, 4101, 4102, 4103, 4104
TOKEN_EXPIRED = 4200

KINDS: dict[str, Kind] = {
    "unauthorised": Kind(401, UNAUTHORISED, "The credentials are missing or not accepted"),
    "token_expired": Kind(401, TOKEN_EXPIRED, "The token has expired; get a new one and come back"),
    "forbidden": Kind(403, FORBIDDEN, "The credentials do not permit this"),
    "reserved_channel": Kind(403, FORBIDDEN, "Only the gateway itself publishes to this channel"),
    "forbidden_origin": Kind(403, FORBIDDEN, "This origin is not allowed"),
    "not_found": Kind(404, BAD_REQUEST, "There is nothing here"),
    "method_not_allowed": Kind(405, BAD_REQUEST, "This address does not take that method"),
    "bad_request": Kind(400, BAD_REQUEST, "The request is malformed"),
    "bad_json": Kind(400, BAD_REQUEST, "The body is not strict JSON"),
    "bad_channel": Kind(400, BAD_REQUEST, "The channel name is malformed"),
    "bad_cursor": Kind(400, BAD_REQUEST, "The cursor is malformed"),
    "bad_event": Kind(400, BAD_REQUEST, "The event name is malformed"),
    "too_many_channels": Kind(400, BAD_REQUEST, "Too many channels"),
    "key_not_allowed": Kind(400, BAD_REQUEST, "This namespace is not keyed"),
    "no_presence": Kind(400, BAD_REQUEST, "This namespace does not ask for presence"),
    "too_deep": Kind(400, BAD_REQUEST, "Nested too deeply"),
    "unsupported_media_type": Kind(415, BAD_REQUEST, "This content type is not understood"),
    "request_timeout": Kind(408, BAD_REQUEST, "The request took too long to arrive"),
    "too_large": Kind(413, TOO_LARGE, "Too large"),
    "stale_version": Kind(409, BAD_REQUEST, "The key already holds this version or a newer one"),
    "too_many_keys": Kind(409, BAD_REQUEST, "The channel holds as many keys as it may"),
    "id_reused": Kind(422, BAD_REQUEST, "This id was used with another body"),
    "rate_limited": Kind(429, RATE_LIMITED, "Too many requests"),
    "too_slow": Kind(503, TOO_SLOW, "The connection stayed stuck"),
    "server_error": Kind(500, SERVER_ERROR, "The gateway failed; the fault is logged"),
    "unavailable": Kind(503, SERVER_ERROR, "The store is away"),
    "store_full": Kind(503, SERVER_ERROR, "The store is full"),
    "ids_full": Kind(503, SERVER_ERROR, "The idempotency table is full"),
    "draining": Kind(503, DRAINING, "This node is shutting down"),
    "full": Kind(503, FULL, "This node holds as many connections as it may"),
    "busy": Kind(503, FULL, "This node lets nobody in at the moment"),
}

# Where another node, or this one a little later, lets a client in. At a refusal an EventSource would give up: it gets a
# stream that says when to come back.
LATER = ("draining", "full", "busy")

# What a backend may end a session with: each of another close code.
ENDS = ("unauthorised", "forbidden", "token_expired", "unavailable")


class Problem(Exception):
    """A refusal with a stable `code` of `KINDS` and a sentence that says what to do (RFC 9457 over HTTP)."""

    def __init__(self, code: str, detail: str, *, retry_after: float | None = None, **facts: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after = retry_after  # seconds
        self.facts = facts

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    def as_json(self) -> dict[str, Any]:
        """The problem details object of RFC 9457, with `code` and any facts as extension members.

        `retry_after` (seconds) is one of them where it is known: not every transport has the header.
        """
        kind = self.kind
        facts = self.facts if self.retry_after is None else {"retry_after": self.retry_after, **self.facts}
        return {"type": "about:blank", "title": kind.title, "status": kind.status, "code": self.code,
                "detail": self.detail, **facts}  # fmt: skip


def reconnects(close: int) -> bool:
    """Whether a client that is told this close code should come back by itself."""
    return not 4000 <= close < 4100
