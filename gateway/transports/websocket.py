"""WebSocket (RFC 6455) as plain ASGI: JSON text frames both ways, subprotocol `ringcast.v1`."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.auth import Credentials, Identity
from gateway.credentials import credentials_of
from gateway.errors import TOO_LARGE, Problem
from gateway.message import Control
from gateway.node import Node
from gateway.publish import Body, Refusal, drafts
from gateway.session import Session
from gateway.transports.asks import (
    BODY,
    URL_CURSOR,
    Wanted,
    ask,
    asks,
    check_offset,
    from_query,
    parse_since,
    permit,
    refusal,
)
from gateway.transports.wire import abort_of, drained_of

SUBPROTOCOL = "ringcast.v1"
MAX_REASON = 120  # bytes of a close frame's reason (RFC 6455, 5.5)


class Frame(msgspec.Struct):
    """What a client may send; unknown fields are passed over, so that a newer client can speak to an older node."""

    type: str
    id: int | str | None = None
    channel: str = ""
    offset: int | None = None
    since: str | None = None
    snapshot: bool = False
    token: str | None = None
    channels: list[str] = []
    cursor: str | None = None
    event: str = "message"
    data: msgspec.Raw = msgspec.Raw(b"null")
    message_id: str | None = None


_decode = msgspec.json.Decoder(Frame).decode


async def endpoint(websocket: WebSocket) -> None:
    """Accept a WebSocket and serve it until it ends.

    A browser tells scripts no status of a refused handshake, so all but a foreign origin is refused by completing the
    handshake and closing it at once with the table's code.
    """
    node: Node = websocket.app.state.node
    credentials = credentials_of(websocket, node.auth.limits)
    refused: Problem | None = None
    identity: Identity | None = None
    try:
        node.auth.limits.request(credentials.address)
        identity = await node.auth.authenticate(credentials)
    except Problem as problem:
        if problem.code == "forbidden_origin":
            await websocket.close()  # before accepting: answered with 403
            return
        refused = problem
    offered = websocket.scope.get("subprotocols", ())
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    try:
        if refused is not None:
            raise refused
        with node.connection("websocket", credentials.address):
            await Connection(node, websocket, credentials).serve(identity)
    except Problem as problem:
        await _refuse(node, websocket, problem)
    except WebSocketDisconnect:
        pass  # it left while it was being let in


async def _refuse(node: Node, websocket: WebSocket, problem: Problem) -> None:
    node.metrics.refusals[problem.code] += 1
    reason = problem.detail.encode()[:MAX_REASON].decode(errors="ignore")
    with suppress(WebSocketDisconnect, RuntimeError):  # it may have gone already
        await websocket.close(problem.kind.close, reason)


class Connection:
    """One accepted WebSocket: this task reads, a second one writes what the session has for it."""

    def __init__(self, node: Node, websocket: WebSocket, credentials: Credentials) -> None:
        self.node = node
        self.websocket = websocket
        self.credentials = credentials
        self.identity: Identity
        self.session: Session
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
        self.session = self.node.session(identity, self._ready.set, welcome=True)
        writer = asyncio.create_task(self._write(), name="websocket writer")
        self.session.on_abort = abort_of(self.websocket.scope, writer.cancel)
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
        """The first frame, when nothing in the handshake told who this is."""
        try:
            async with asyncio.timeout(self.node.settings.connect_within):
                text = await self._text()
        except TimeoutError:
            raise Problem("unauthorised", "Send a connect frame with a token within a few seconds") from None
        frame = _frame(text)
        if frame.type != "connect" or frame.token is None:
            raise Problem("unauthorised", "The first frame must be a connect frame with a token")
        identity = await self._identify(frame.token)
        return Wanted(frame.channels, frame.cursor, frame.since, frame.snapshot), identity

    async def _identify(self, token: str) -> Identity:
        known = self.credentials
        credentials = Credentials(
            known.address, token=token, origin=known.origin, host=known.host, scheme=known.scheme, websocket=True
        )
        identity = await self.node.auth.authenticate(credentials)
        assert identity is not None  # a token was presented
        return identity

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
        text = event.get("text")
        if text is None:
            raise Problem("bad_request", "Frames are JSON in text frames, not binary")
        if len(text) > self._limit:
            raise Problem("too_large", f"A frame has at most {self._limit} characters")
        return str(text)

    @property
    def _limit(self) -> int:
        return max(BODY, self.node.settings.max_message) + (4 << 10)

    async def _read(self) -> None:
        try:
            while True:
                frame = _frame(await self._text())
                await self._handle(frame)
                await self._room()
        except WebSocketDisconnect:
            return
        except Problem as problem:
            self.node.metrics.refusals[problem.code] += 1
            self.node.goodbye(self.session, problem.kind.close, problem.detail)
            await asyncio.Event().wait()  # the writer ends the connection

    async def _room(self) -> None:
        """A client that does not read what it asks for is not listened to until it does."""
        while self.session.outbox:
            self._drained.clear()
            await self._drained.wait()

    async def _handle(self, frame: Frame) -> None:
        try:
            match frame.type:
                case "ping":
                    self.session.offer(Control("pong"))
                case "subscribe":
                    await self._subscribe(frame)
                case "unsubscribe":
                    self._unsubscribe(frame)
                case "publish":
                    await self._publish(frame)
                case "connect":
                    await self._reconnect(frame)
                case other:
                    raise Problem("bad_request", f"There is no frame of type {other[:40]!r}")
        except Problem as problem:
            if problem.kind.close == TOO_LARGE or frame.type == "connect":
                raise
            self.session.offer(Control("error", **refusal(problem, frame.id)))

    async def _subscribe(self, frame: Frame) -> None:
        channel, session = frame.channel, self.session
        permit(channel, self.identity)
        if frame.offset is not None:
            check_offset(channel, frame.offset)
        if len(session.channels) >= self.node.settings.max_channels:
            raise Problem("too_many_channels", f"One session has {self.node.settings.max_channels} channels at most")
        if channel in session.channels:
            self.node.hub.unsubscribe(session, channel)  # asked for again: from where it says now
        wish = ask(channel, frame.offset, parse_since(frame.since), frame.snapshot)
        await self.node.subscribe(session, wish, frame.id)

    def _unsubscribe(self, frame: Frame) -> None:
        if frame.channel not in self.session.channels:
            raise Problem("bad_request", f"This session is not subscribed to {frame.channel[:80]!r}")
        self.node.hub.unsubscribe(self.session, frame.channel)
        self.session.offer(Control("unsubscribed", frame.channel, id=frame.id))

    async def _publish(self, frame: Frame) -> None:
        if not self.identity.publish and not self.identity.server:
            raise Problem("forbidden", "The token grants no publishing: it needs a `publish` claim")
        body = Body(channel=frame.channel, event=frame.event, data=frame.data, id=frame.message_id)
        results: list[dict[str, Any]] = []
        for draft in drafts(body, self.node.settings, self.identity.principal):
            if isinstance(draft, Refusal):
                raise draft.problem
            self.identity.check_publish(draft.channel)
            results.append(msgspec.to_builtins(await self.node.publish(draft)))
        self.session.offer(Control("published", id=frame.id, results=results))

    async def _reconnect(self, frame: Frame) -> None:
        """A new token in the old one's place; what it does not permit any more is unsubscribed."""
        if frame.token is None or frame.channels or frame.cursor or frame.since:
            raise Problem("bad_request", "An open connection takes a connect frame with `token` alone")
        identity = await self._identify(frame.token)
        if identity.subject != self.identity.subject:
            raise Problem("forbidden", "The new token is another user's: open a new connection for it")
        self.identity, session = identity, self.session
        self.node.admit(session, identity)
        for channel in [name for name in session.channels if not identity.may_read(name)]:
            self.node.hub.unsubscribe(session, channel)
            session.offer(Control("unsubscribed", channel))
        channels = [{"channel": name, "offset": offset} for name, offset in session.reached().items()]
        session.offer(Control("welcome", **self.node.welcome_fields(session, identity), channels=channels))


def _frame(text: str) -> Frame:
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise Problem("bad_request", f"The frame is not a JSON object of this protocol: {error}") from None
