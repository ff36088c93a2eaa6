"""The HTTP interface for backends: looking into channels, tickets, and what operators ask a node."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from importlib.resources import files
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive

from gateway import explain, metrics
from gateway.errors import Problem
from gateway.grants import ticket
from gateway.http import JSON, Stream, content_type, encode, flag, identify, json_response, problem_response, read_body
from gateway.message import MAX_OFFSET, check_channel, encode_cursor
from gateway.node import Node
from gateway.transports.asks import parse_since, permit

MAX_TICKET_BODY = 64 << 10  # bytes
PIECE = 64 << 10  # bytes of a snapshot that are sent together


def routes(node: Node) -> list[Route]:
    """The routes of one node; what they raise is told by `gateway.http.exception_handlers`."""
    openapi = files("gateway").joinpath("openapi.json").read_bytes()

    async def history(request: Request) -> Response:
        channel = await _readable(request, node)
        limit = _whole(request, "limit", node.settings.page_messages, most=node.settings.page_messages)
        since, presented = _position(request.query_params.get("since", "earliest"))
        if not presented and 0 < since < MAX_OFFSET:
            since = await node.broker.position_at(channel, since)
        page = await node.broker.read(channel, since, limit)
        about: dict[str, Any] = {"channel": channel, "offset": page.reached, "more": page.more}
        if presented and not page.continuous:
            about["reset"] = {"reason": page.reason, "offset": page.start}
        return Listing(node.settings.stuck_after, about, "messages", (each.json for each in page.messages))

    async def snapshot(request: Request) -> Response:
        channel = await _readable(request, node)
        found = await node.broker.snapshot(channel)
        about = {"channel": channel, "offset": found.offset}
        return Listing(node.settings.stuck_after, about, "snapshot", (each.json for each in found.messages))

    async def present(request: Request) -> Response:
        """The members, and a cursor from which `presence:<channel>` tells what has changed since."""
        channel = _channel(request)
        told = f"presence:{channel}"
        permit(told, await identify(request, node.auth), node.settings)
        found = await node.broker.snapshot(told)
        members = [msgspec.Raw(message.data) for message in found.messages]
        cursor = encode_cursor({told: found.offset})
        return json_response({"channel": channel, "offset": found.offset, "cursor": cursor, "count": len(members),
                              "members": members})  # fmt: skip

    async def tickets(request: Request) -> Response:
        identity = await identify(request, node.auth)
        if content_type(request) != JSON:
            raise Problem("unsupported_media_type", f"Say what the ticket is for as {JSON}")
        body = await read_body(request, MAX_TICKET_BODY, node.settings.stuck_after)
        return json_response(ticket(body, identity, node.auth.tickets, node.settings))

    async def nodes(request: Request) -> Response:
        await _server(request, node, "What the nodes are is for API keys alone")
        return json_response(explain.nodes(node, details=flag(request.query_params, "details")))

    async def route(request: Request) -> Response:
        await _server(request, node, "The way of a channel's messages is for API keys alone")
        return json_response(await explain.route(node, _explained(request)))

    async def livez(_: Request) -> Response:
        return json_response({"status": "alive"})

    async def readyz(_: Request) -> Response:
        found = explain.unready(node)
        if not found:
            return json_response({"ready": True, "reasons": []})
        reasons = [{"reason": reason, "detail": detail} for reason, detail in found.items()]
        detail = f"Not ready: {' and '.join(found.values())}"
        code = "draining" if node.draining else "unavailable"
        return problem_response(Problem(code, detail, ready=False, reasons=reasons))

    async def exposition(request: Request) -> Response:
        # A loopback address proves nothing: behind a proxy of the same machine everyone has it.
        await _server(request, node, "Metrics are for API keys: give Prometheus one as its bearer token")
        return Response(node.metrics.exposition(), media_type=metrics.CONTENT_TYPE)

    async def document(_: Request) -> Response:
        return Response(openapi, media_type=JSON)

    return [
        Route("/v1/history", history, methods=["GET"]),
        Route("/v1/snapshot", snapshot, methods=["GET"]),
        Route("/v1/presence", present, methods=["GET"]),
        Route("/v1/tickets", tickets, methods=["POST"]),
        Route("/v1/nodes", nodes, methods=["GET"]),
        Route("/v1/route", route, methods=["GET"]),
        Route("/livez", livez, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", exposition, methods=["GET"]),
        Route("/openapi.json", document, methods=["GET"]),
    ]


class Listing(Stream):
    """A JSON object of a few members and a list of values, which are JSON already, sent a piece at a time."""

    def __init__(self, stuck_after: float, about: dict[str, Any], name: str, values: Iterable[bytes]) -> None:
        super().__init__(stuck_after, JSON)
        self._about = about
        self._name = name
        self._values = values

    async def pieces(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        piece = bytearray(encode(self._about)[:-1] + b"," + encode(self._name) + b":[")
        for number, value in enumerate(self._values):
            if len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
            piece += b"," + value if number else value
        yield bytes(piece + b"]}")


async def _readable(request: Request, node: Node) -> str:
    """The channel that is asked for, once it is clear that whoever asks may read it."""
    identity = await identify(request, node.auth)
    channel = _channel(request)
    permit(channel, identity, node.settings)
    return channel


def _channel(request: Request) -> str:
    channel = request.query_params.get("channel")
    if channel is None:
        raise Problem("bad_request", "Which channel? Name one as ?channel=")
    return channel


async def _server(request: Request, node: Node, refusal: str) -> None:
    if not (await identify(request, node.auth)).server:
        raise Problem("forbidden", refusal)


def _explained(request: Request) -> str:
    """The channel of ?channel=, or that of ?user=."""
    user, channel = request.query_params.get("user"), request.query_params.get("channel")
    if (user is None) == (channel is None):
        raise Problem("bad_request", "Whose way? Name a user as ?user= or a channel as ?channel=")
    try:
        return check_channel(f"user:{user}" if channel is None else channel)
    except ValueError as error:
        raise Problem("bad_channel", str(error)) from None


def _position(since: str) -> tuple[int, bool]:
    """Where to begin, and whether that is an offset somebody was told, so that a gap after it has to be told."""
    if not since.isdecimal():
        offset = parse_since(since)
        return MAX_OFFSET if offset is None else offset, False
    if len(since) > len(str(MAX_OFFSET)) or int(since) > MAX_OFFSET:
        raise Problem("bad_request", "since is above 2^53 - 1, the highest offset there can be", field="since")
    return int(since), True


def _whole(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most):
        raise Problem("bad_request", f"{name} must be a whole number between 1 and {most}", field=name)
    return int(text)
