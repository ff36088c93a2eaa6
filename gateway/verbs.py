"""The verbs of a backend on its users: what a request may ask for, and the answers. For API keys alone."""

from __future__ import annotations

import time
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.brokers.base import Receipt
from gateway.errors import ENDS, KINDS, Problem
from gateway.http import JSON, content_type, identify, json_response, read_body
from gateway.identity import Identity, check_subject
from gateway.message import VERBS, Draft, check_channel, clip, new_id
from gateway.node import Node
from gateway.publish import check_id
from gateway.users import DISCONNECT, SUBSCRIBE, UNSUBSCRIBE, Channels, End

MAX_BODY = 64 << 10  # bytes
MAX_HINT = 120  # bytes: what a close frame's reason may have (RFC 6455, 5.5)
MAX_CHANNELS = 100  # of one request
AHEAD = 60.0  # seconds that a backend's clock may be ahead of this one


Body = TypeVar("Body", bound=msgspec.Struct)


class Disconnect(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/disconnect."""

    user: str
    revoke_before: float | None = None  # seconds since 1970
    code: str | None = None
    hint: str | None = None


class Subscription(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /v1/subscribe and /v1/unsubscribe."""

    user: str
    channels: list[str]


def routes(node: Node) -> list[Route]:
    async def disconnect(request: Request) -> Response:
        identity, body, id = await _asked(request, node, Disconnect)
        user = _user(body.user)
        if body.revoke_before is not None:
            return json_response(await node.revoker.revoke(user, _moment(body)))
        end = _end(body)
        return json_response(await _tell(node, identity, user, DISCONNECT, end, id))

    async def subscribe(request: Request) -> Response:
        identity, body, id = await _asked(request, node, Subscription)
        return json_response(await _tell(node, identity, _user(body.user), SUBSCRIBE, _channels(body), id))

    async def unsubscribe(request: Request) -> Response:
        identity, body, id = await _asked(request, node, Subscription)
        return json_response(await _tell(node, identity, _user(body.user), UNSUBSCRIBE, _channels(body), id))

    async def connections(request: Request) -> Response:
        await _server(request, node)
        user = request.query_params.get("user")
        if user is None:
            raise Problem("bad_request", "Whose connections? Name a user as ?user=", field="user")
        return json_response(await node.cluster.roll_call.take(_user(user)))

    return [
        Route("/v1/connections", connections, methods=["GET"]),
        Route("/v1/disconnect", disconnect, methods=["POST"]),
        Route("/v1/subscribe", subscribe, methods=["POST"]),
        Route("/v1/unsubscribe", unsubscribe, methods=["POST"]),
    ]


async def _asked(request: Request, node: Node, kind: type[Body]) -> tuple[Identity, Body, str | None]:
    """Who asks, what for, and the id under which a repeat is harmless. Raises Problem."""
    identity = await _server(request, node)
    if content_type(request) != JSON:
        raise Problem("unsupported_media_type", f"Say what is to be done as {JSON}")
    id = check_id(request.headers.getlist("idempotency-key"))
    body = await read_body(request, MAX_BODY, node.settings.stuck_after)
    try:
        return identity, msgspec.json.decode(body, type=kind), id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        takes = ", ".join(kind.__struct_fields__)
        raise Problem("bad_request", f"{clip(str(error), 300)[1:-1]}; the body takes {takes}") from None


async def _server(request: Request, node: Node) -> Identity:
    identity = await identify(request, node.auth)
    if not identity.server:
        raise Problem("forbidden", "A user's connections are for API keys alone to see and to change")
    return identity


async def _tell(node: Node, identity: Identity, user: str, verb: str, data: msgspec.Struct, id: str | None) -> Receipt:
    """Say it on the user's own channel, where every node hears it that has a session of the user."""
    return await node.publish(Draft(
        VERBS + user, verb, msgspec.json.encode(data), new_id() if id is None else id,
        principal=identity.principal, idempotent=id is not None,
    ))  # fmt: skip


def _user(user: str) -> str:
    try:
        return check_subject(user)
    except ValueError as error:
        raise Problem("bad_request", f"user: {error}", field="user") from None


def _moment(body: Disconnect) -> float:
    assert body.revoke_before is not None
    if body.code is not None or body.hint is not None:
        raise Problem("bad_request", "With revoke_before sessions end as unauthorised: leave code and hint out")
    if not 0 < body.revoke_before <= time.time() + AHEAD:
        detail = "revoke_before is a time that has come, in seconds since 1970, as a token's `iat` is"
        raise Problem("bad_request", detail, field="revoke_before")
    return body.revoke_before


def _end(body: Disconnect) -> End:
    code = ENDS[0] if body.code is None else body.code
    if code not in ENDS:
        raise Problem("bad_request", f"code is one of {', '.join(ENDS)}, not {clip(code)}", field="code")
    hint = KINDS[code].title if body.hint is None else body.hint
    if not hint.isprintable() or len(hint.encode()) > MAX_HINT:
        raise Problem("bad_request", f"hint must be a line of at most {MAX_HINT} bytes", field="hint")
    return End(code, hint)


def _channels(body: Subscription) -> Channels:
    channels = list(dict.fromkeys(body.channels))
    if not channels:
        raise Problem("bad_request", "channels is empty: name at least one", field="channels")
    if len(channels) > MAX_CHANNELS:
        raise Problem("too_many_channels", f"At most {MAX_CHANNELS} channels are taken at once: split it")
    for channel in channels:
        try:
            check_channel(channel)
        except ValueError as error:
            raise Problem("bad_channel", str(error), field="channels") from None
        if channel.startswith("ringcast:"):
            raise Problem("forbidden", f"{clip(channel)} is the gateway's own: nobody reads it", channel=channel)
    return Channels(channels)
