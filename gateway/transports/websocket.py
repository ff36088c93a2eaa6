"""WebSocket (RFC 6455) as plain ASGI: JSON text frames both ways, subprotocol `ringcast.v1`."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway import access
from gateway.auth import Credentials, Identity
from gateway.credentials import credentials_of
from gateway.errors import Problem
from gateway.head import Head
from gateway.node import Node
from gateway.session import Calls
from gateway.transports.asks import BODY, URL_CURSOR, Wanted, asks, from_query
from gateway.transports.conversation import MAX_REASON, SUBPROTOCOL, Conversation, Place
from gateway.transports.wire import abort_of, connection, drained_of


async def endpoint(websocket: WebSocket) -> None:
    """Accept a WebSocket and serve it until it ends.

    A browser tells scripts no status of a refused handshake, so all but a foreign origin is refused by completing the
    handshake and closing it at once with the table's code.
    """
    node: Node = websocket.app.state.node
    credentials = credentials_of(Head.of(websocket.scope), node.auth.limits)
    refused: Problem | None = None
    identity: Identity | None = None
    try:
        node.auth.limits.request(credentials.address)
        node.admission.check("websocket")
        identity = await node.auth.authenticate(credentials)
    except Problem as problem:
        if problem.code == "forbidden_origin" or node.auth.foreign(credentials):
            await websocket.close()  # before accepting: answered with 403
            return
        refused = problem
    offered = websocket.scope.get("subprotocols", ())
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    try:
        if refused is not None:
            raise refused
        with connection(node, "websocket", credentials.address):
            await Connection(node, websocket, credentials).serve(identity)
    except Problem as problem:
        access.refused("websocket", credentials.address, problem)
        await _refuse(node, websocket, problem)
    except WebSocketDisconnect:
        pass  # it left while it was being let in


async def _refuse(node: Node, websocket: WebSocket, problem: Problem) -> None:
    node.metrics.refusals[problem.code] += 1
    reason = problem.detail.encode()[:MAX_REASON].decode(errors="ignore")
    with suppress(WebSocketDisconnect, RuntimeError):  # it may have gone already
        await websocket.close(problem.kind.close, reason)


class Connection(Conversation):
    """One accepted WebSocket: this task reads, a second one writes what the session has for it."""

    def __init__(self, node: Node, websocket: WebSocket, credentials: Credentials) -> None:
        self.node = node
        self.place = Place.of(credentials)
        self.websocket = websocket
        self._ready = asyncio.Event()
        self._drained = asyncio.Event()

    async def serve(self, identity: Identity | None) -> None:
        """Raises Problem when the connection is refused, before anything was sent."""
        cursor_limit = BODY
        if identity is None:
            wanted, identity = await self._connect()
        else:
            cursor_limit = URL_CURSOR
            wanted = from_query(self.websocket.query_params, self.websocket.scope["query_string"].decode("latin-1"))
        self.identity = identity
        wishes = asks(wanted, identity, self.node.settings, cursor_limit)
        calls = Calls(self._ready.set)
        self.session = self.node.session(identity, calls, welcome=True, transport="websocket")
        writer = asyncio.create_task(self._write(), name="websocket writer")
        calls.abort = abort_of(self.websocket.scope, writer.cancel)
        try:
            await self.node.open(self.session, wishes)
            reader = asyncio.ensure_future(self._read())
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            if reader in done:
                reader.result()
        finally:
            self.node.leave(self.session)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _connect(self) -> tuple[Wanted, Identity]:
        try:
            async with asyncio.timeout(self.node.settings.connect_within):
                text = await self._text()
        except TimeoutError:
            raise Problem("unauthorised", "Send a connect frame with a token within a few seconds") from None
        return await self.connect(text)

    # ---------------------------------------------------------------- out

    async def _write(self) -> None:
        """Everything the session has goes out, in order; then, once it is to end, the close frame."""
        session, send = self.session, self.websocket.send_text
        drained = drained_of(self.websocket.scope)
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                while items := session.take():
                    for item in items:
                        text = item.text
                        self.node.metrics.delivered_bytes += len(text)
                        await send(text)
                    await drained()
                    self.node.sent(session)
                self.node.sent(session)
                self._drained.set()
                if session.closing is not None and not session.outbox:
                    await self.websocket.close(session.closing)
                    return
        except (WebSocketDisconnect, RuntimeError):
            return  # the client has gone, or closed while we wrote

    # ---------------------------------------------------------------- in

    async def _text(self) -> str:
        event = await self.websocket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", 1005))
        text: str | None = event.get("text")
        if text is None:
            raise Problem("bad_request", "Frames are JSON in text frames, not binary")
        self.check_size(text)
        return text

    async def _read(self) -> None:
        try:
            while True:
                await self.hear(await self._text())
                await self._room()
        except WebSocketDisconnect:
            return
        except Problem as problem:
            self.end(problem)
            await asyncio.Event().wait()  # the writer ends the connection

    async def _room(self) -> None:
        """A client that does not read what it asks for is not listened to until it does."""
        while self.session.outbox:
            self._drained.clear()
            await self._drained.wait()
