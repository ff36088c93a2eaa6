"""What the frames of a WebSocket client mean, whatever carries them: JSON objects of the protocol."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from gateway.auth import Credentials, Identity
from gateway.errors import TOO_LARGE, Problem
from gateway.message import Control
from gateway.node import Node
from gateway.publish import Body, Refusal, drafts
from gateway.session import Session
from gateway.transports.asks import BODY, Wanted, ask, check_offset, parse_since, permit, refusal

SUBPROTOCOL = "ringcast.v1"
LARGEST_FRAME = 1 << 20  # bytes; beyond it the connection fails by RFC 6455's 1009, below it we say why
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


class Place(NamedTuple):
    """Where a client is and whence it came: what of its handshake is wanted again when it sends a new token."""

    address: str
    origin: str | None
    host: str | None
    scheme: str

    @classmethod
    def of(cls, credentials: Credentials) -> Place:
        return _place(credentials.address, credentials.origin, credentials.host, credentials.scheme)


_place = lru_cache(maxsize=256)(Place)  # those of one page and address share theirs


class Conversation:
    """One client's side: who it is, and what each of its frames does to its session."""

    __slots__ = ()  # what it needs is held by whoever carries the frames

    node: Node
    place: Place
    identity: Identity
    session: Session

    def check_size(self, text: str) -> None:
        limit = max(BODY, self.node.settings.max_message) + (4 << 10)
        if len(text) > limit:
            raise Problem("too_large", f"A frame has at most {limit} characters")

    async def connect(self, text: str) -> tuple[Wanted, Identity]:
        """The first frame, when nothing in the handshake told who this is. Raises Problem."""
        frame = _frame(text)
        if frame.type != "connect" or frame.token is None:
            raise Problem("unauthorised", "The first frame must be a connect frame with a token")
        identity = await self._identify(frame.token)
        return Wanted(frame.channels, frame.cursor, frame.since, frame.snapshot), identity

    async def _identify(self, token: str) -> Identity:
        place = self.place
        credentials = Credentials(
            place.address, token=token, origin=place.origin, host=place.host, scheme=place.scheme, websocket=True
        )
        identity = await self.node.auth.authenticate(credentials)
        assert identity is not None  # a token was presented
        return identity

    async def hear(self, text: str) -> None:
        """Do what a frame says. Raises Problem for what ends the connection; all else is answered by an `error`."""
        await self._handle(_frame(text))

    def end(self, problem: Problem) -> None:
        """Say goodbye for what `hear` raised."""
        self.node.metrics.refusals[problem.code] += 1
        self.node.goodbye(self.session, problem.kind.close, problem.detail)

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
        permit(channel, self.identity, self.node.settings)
        if frame.offset is not None:
            check_offset(channel, frame.offset)
        if len(session.channels) >= self.node.settings.max_channels:
            raise Problem("too_many_channels", f"One session has {self.node.settings.max_channels} channels at most")
        if channel in session.channels:
            self.node.hub.unsubscribe(session, channel)  # asked for again: from where it says now
        wish = ask(channel, frame.offset, parse_since(frame.since), frame.snapshot, self.node.settings)
        wish.request = frame.id
        await self.node.subscribe(session, [wish])

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
        session = self.session
        self.identity = identity  # type: ignore[misc]  # the slot is that of whoever carries the frames
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
