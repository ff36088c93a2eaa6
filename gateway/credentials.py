"""What an HTTP request or a WebSocket handshake presents, read off its headers and query."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from gateway.auth import Credentials
from gateway.limits import Limits


def address_of(connection: HTTPConnection, limits: Limits) -> str:
    """The client's address, past the proxies that are trusted."""
    return limits.address(_peer(connection), ",".join(connection.headers.getlist("x-forwarded-for")) or None)


def credentials_of(connection: HTTPConnection, limits: Limits) -> Credentials:
    """What is presented; a header that came twice as one value that nothing accepts."""
    headers, query = connection.headers, connection.query_params
    return Credentials(
        address_of(connection, limits),
        authorization=", ".join(headers.getlist("authorization")) or None,
        subprotocols=connection.scope.get("subprotocols", ()),
        ticket=query.get("ticket"),
        query_token=query.get("token"),
        cookies=connection.cookies,
        origin=headers.get("origin"),
        host=headers.get("host"),
        scheme=_scheme(connection, limits),
        fetch_site=headers.get("sec-fetch-site"),
        websocket=connection.scope["type"] == "websocket",
    )


def _scheme(connection: HTTPConnection, limits: Limits) -> str:
    """How the client reached us: as a trusted proxy that ends TLS tells it, so that its page keeps its own origin."""
    told = connection.headers.get("x-forwarded-proto")
    if told is not None and limits.trusts(_peer(connection)):
        return told.partition(",")[0].strip()  # the outermost proxy's comes first
    scheme: str = connection.scope["scheme"]
    return scheme


def _peer(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client is not None else ""
