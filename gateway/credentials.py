"""What an HTTP request or a WebSocket handshake presents, read off its headers and query."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from gateway.auth import Credentials
from gateway.limits import Limits


def address_of(connection: HTTPConnection, limits: Limits) -> str:
    """The client's address, past the proxies that are trusted."""
    peer = connection.client.host if connection.client is not None else ""
    return limits.address(peer, ",".join(connection.headers.getlist("x-forwarded-for")) or None)


def credentials_of(connection: HTTPConnection, address: str) -> Credentials:
    headers, query = connection.headers, connection.query_params
    websocket = connection.scope["type"] == "websocket"
    return Credentials(
        address,
        authorization=headers.get("authorization"),
        subprotocols=connection.scope.get("subprotocols", ()),
        ticket=query.get("ticket"),
        query_token=query.get("token"),
        cookies=connection.cookies,
        origin=headers.get("origin"),
        host=headers.get("host"),
        scheme=connection.url.scheme.replace("ws", "http"),
        fetch_site=headers.get("sec-fetch-site"),
        websocket=websocket,
    )
