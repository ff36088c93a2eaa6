"""What an HTTP request for messages brings along, the same for streams and polls."""

from __future__ import annotations

from starlette.requests import Request

from gateway.auth import Identity
from gateway.errors import Problem
from gateway.http import identify, read_body
from gateway.node import Node
from gateway.session import Ask
from gateway.settings import Settings
from gateway.transports.asks import BODY, URL_CURSOR, Wanted, asks, from_json, from_query


async def asked_by(request: Request, node: Node, transport: str) -> tuple[Identity, Wanted, list[Ask]]:
    """Who asks, what for, and that channel by channel: at least one. Raises Problem, before it looks where it can."""
    node.admission.check(transport)
    identity = await identify(request, node.auth)
    if request.method == "POST":
        wanted, limit = from_json(await read_body(request, BODY, node.settings.stuck_after)), BODY
    else:
        raw = request.scope["query_string"].decode("latin-1")
        wanted, limit = from_query(request.query_params, raw, request.headers.get("last-event-id")), URL_CURSOR
    return identity, wanted, wishes_of(wanted, identity, node.settings, limit)


def wishes_of(wanted: Wanted, identity: Identity, settings: Settings, cursor_limit: int) -> list[Ask]:
    """What is asked for, channel by channel: at least one. Raises Problem."""
    wishes = asks(wanted, identity, settings, cursor_limit)
    if not wishes:
        raise Problem("bad_request", "Name at least one channel: ?channels=topic:news")
    return wishes
