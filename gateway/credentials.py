"""What an HTTP request or a WebSocket handshake presents, read off its head."""

from __future__ import annotations

from gateway.auth import Credentials
from gateway.head import Head
from gateway.limits import Limits

CONSOLE = "/console/"
OPERATOR_COOKIE = "ringcast_operator"


def address_of(head: Head, limits: Limits) -> str:
    """The client's address, past the proxies that are trusted."""
    return limits.address(head.peer, head.fields.get("x-forwarded-for"))


def credentials_of(head: Head, limits: Limits) -> Credentials:
    """What is presented; a header that came twice is one value that nothing accepts."""
    fields, query, websocket = head.fields, head.query, head.websocket
    return Credentials(
        address_of(head, limits),
        authorization=fields.get("authorization"),
        subprotocols=head.listed("sec-websocket-protocol") if websocket else (),
        ticket=query.get("ticket"),
        query_token=query.get("token"),
        cookies=head.cookies if "cookie" in fields else {},
        operator=head.cookies.get(OPERATOR_COOKIE, "") if head.path.startswith(CONSOLE) else None,
        origin=fields.get("origin"),
        host=fields.get("host"),
        scheme=scheme_of(head, limits),
        fetch_site=fields.get("sec-fetch-site"),
        websocket=websocket,
    )


def scheme_of(head: Head, limits: Limits) -> str:
    """How the client reached us: as a trusted proxy that ends TLS tells it, so that its page keeps its own origin."""
    told = head.fields.get("x-forwarded-proto")
    if told is not None and limits.trusts(head.peer):
        return told.partition(",")[0].strip()  # the outermost proxy's comes first
    return head.scheme
