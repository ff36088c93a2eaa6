"""One class per transport. Each opens a session, gives its frames as they come and tells by Ended why it is over.

The token travels in the Authorization header. No link follows redirects, so it goes nowhere but to the gateway's own
hosts (`place.py`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from urllib.parse import urlencode

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from gateway.client.frames import Answer, Checkpoint, Frame, Welcome, decode_frame
from gateway.client.place import HOME_WITHIN, Place
from gateway.client.reconnect import Ended
from gateway.client.stream import Events
from gateway.errors import BAD_REQUEST, FORBIDDEN, KINDS, RATE_LIMITED, SERVER_ERROR, TOO_LARGE, UNAUTHORISED
from gateway.message import MAX_OFFSET, encode_cursor

OPEN_WITHIN = 10.0  # seconds, for a connection and its first frame
WAIT = 25.0  # seconds that a poll asks the gateway to wait for messages
MAX_QUERY = 4096  # bytes, of a cursor too; beyond it a WebSocket's parameters and token go in a connect frame
MAX_FRAME = 8 << 20  # bytes

# websockets logs every header at DEBUG, and the token is one: only who asks for this very logger gets to see it.
_wire_log = logging.getLogger("ringcast.client.wire")
_wire_log.setLevel(logging.INFO)


@dataclass(frozen=True, slots=True)
class Opening:
    """What a session is opened with; `url` is one that `place` gave."""

    url: str
    place: Place
    token: str | None
    channels: tuple[str, ...]
    cursor: str | None
    since: str | None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def partition(self) -> dict[str, int]:
        """What belongs into the query of every address, whatever else is POSTed, for proxies that place us by it."""
        return {} if self.place.partition is None else {"p": self.place.partition}

    def fields(self) -> dict[str, Any]:
        fields = {"channels": list(self.channels), "cursor": self.cursor, "since": self.since}
        return {name: value for name, value in fields.items() if value}


def tls(url: str) -> ssl.SSLContext | None:
    """What connections to this address are encrypted with, if they are."""
    return _certificates() if url.startswith("https:") else None


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The system's, for all: they cost 20 ms and a megabyte to load."""
    return httpx.create_ssl_context()


class Link(Protocol):
    """A connection over one transport; `silence` is how long it may say nothing, None for twice the heartbeat.

    `at` is the address it spoke to last.
    """

    name: ClassVar[str]
    at: str
    silence: float | None

    async def open(self, opening: Opening) -> None: ...
    async def receive(self) -> Iterable[Frame]:
        """The next frames, whenever they come. Raises Ended. One that was cancelled can only be closed."""

    async def close(self) -> None: ...


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class WebSocketLink:
    name: ClassVar[str] = "ws"
    silence: float | None = None

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._socket: ClientConnection | None = None

    async def open(self, opening: Opening) -> None:
        self.at = opening.url
        query = urlencode(opening.fields() | {"channels": ",".join(opening.channels)} | opening.partition)
        longest = encode_cursor(dict.fromkeys(opening.channels, MAX_OFFSET))
        framed = max(len(query), len(longest)) > MAX_QUERY and opening.token is not None
        query = urlencode(opening.partition) if framed else query
        address = "ws" + opening.url.removeprefix("http") + "/v1/ws" + f"?{query}".rstrip("?")
        try:
            self._socket = await _Connect(
                address, additional_headers={} if framed else opening.headers, compression=None,
                subprotocols=[Subprotocol("ringcast.v1")], open_timeout=OPEN_WITHIN, close_timeout=1,
                ping_interval=None, max_size=MAX_FRAME, logger=_wire_log, ssl=tls(opening.url),
            )  # fmt: skip
            if framed:
                connect_frame = {"type": "connect", "token": opening.token, **opening.fields()}
                await self._socket.send(msgspec.json.encode(connect_frame).decode())
        except InvalidStatus as refused:
            response = refused.response
            raise answered(response.status_code, response.headers, bytes(response.body or b"")) from None
        except (InvalidHandshake, TimeoutError) as error:
            raise Ended(_said("no WebSocket gets through", error), blocked=True) from None
        except ConnectionClosed as closed:
            raise _closed(closed) from None
        except OSError as error:
            raise Ended(_said("the gateway is not reached", error)) from None

    async def receive(self) -> Iterable[Frame]:
        assert self._socket is not None
        try:
            frame = decode_frame(await self._socket.recv(decode=False))
        except ConnectionClosed as closed:
            raise _closed(closed) from None
        except msgspec.DecodeError as error:
            raise Ended(_said("what came is no frame of Ringcast", error), blocked=True) from None
        return () if frame is None else (frame,)

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()


class StreamLink:
    """Server-sent events, asked for by POST, whose body holds any cursor."""

    name: ClassVar[str] = "sse"
    silence: float | None = None

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._response: httpx.Response | None = None

    async def open(self, opening: Opening) -> None:
        self.at = opening.url
        headers = opening.headers | {"Accept": "text/event-stream"}
        request = self._http.build_request(
            "POST", opening.url + "/v1/sse", params=opening.partition, json=opening.fields(), headers=headers
        )
        try:
            async with asyncio.timeout(OPEN_WITHIN):
                self._response = response = await self._http.send(request, stream=True)
                if response.status_code != 200:
                    raise answered(response.status_code, response.headers, await response.aread())
        except TimeoutError as error:
            raise Ended(_said("no event stream gets through", error), blocked=True) from None
        except httpx.RequestError as error:
            raise _failed(error) from None
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise Ended("the answer is no event stream", blocked=True, status=response.status_code)
        self._events = Events()
        self._chunks: AsyncIterator[bytes] = response.aiter_bytes()

    async def receive(self) -> Iterable[Frame]:
        try:
            chunk = await anext(self._chunks)
            return list(self._events.feed(chunk))
        except StopAsyncIteration:
            raise Ended("the event stream has ended") from None
        except ValueError as error:
            raise Ended(_said("what came is no event of Ringcast", error), blocked=True) from None
        except httpx.RequestError as error:
            raise _failed(error) from None

    async def close(self) -> None:
        if self._response is not None:
            await self._response.aclose()


class PollLink:
    """Long polls, one after another; the first at an address asks without waiting, to see whether it gets through.

    Each goes to where this client belongs by then. A home that fails one is left for the address that was given.
    """

    name: ClassVar[str] = "poll"
    silence: float | None = WAIT + OPEN_WITHIN

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def open(self, opening: Opening) -> None:
        self._opening, self.at = opening, opening.url
        self._fields = opening.fields()
        self._wait, self._pause = 0.0, 0.0

    async def receive(self) -> Iterable[Frame]:
        await asyncio.sleep(self._pause)
        place = self._opening.place
        if place.now != self.at:
            self.at, self._wait = place.now, 0.0
        if self.at == place.url:
            return await self._poll()
        try:
            async with asyncio.timeout(self._wait + HOME_WITHIN):
                return await self._poll()
        except TimeoutError:
            place.leave(self.at)
        except Ended as end:
            place.leave(self.at, end.code)
        self._pause = 0.0
        return ()

    async def _poll(self) -> list[Frame]:
        opening = self._opening
        try:
            response = await self._http.post(
                self.at + "/v1/poll", params=opening.partition, json=self._fields | {"wait": self._wait},
                headers=opening.headers,
            )  # fmt: skip
        except httpx.RequestError as error:
            raise _failed(error) from None
        frames, self._fields["cursor"] = _polled(response)
        self._fields.pop("since", None)
        self._wait = WAIT
        self._pause = _number(response.headers.get("ringcast-poll-interval"))
        self.silence = WAIT + OPEN_WITHIN + self._pause
        return [*_placed(response.headers), *frames]

    async def close(self) -> None:
        """There is nothing to close between two polls, and one under way was closed when it was cancelled."""


LINKS: tuple[type[WebSocketLink] | type[StreamLink] | type[PollLink], ...] = (WebSocketLink, StreamLink, PollLink)


class _Problem(msgspec.Struct):
    code: str
    detail: str = ""


def answered(status: int, headers: Mapping[str, str], body: bytes) -> Ended:
    """Why an HTTP answer is not the session that was asked for: the gateway's word, or something on the way."""
    wait = _number(headers.get("retry-after"))
    if not headers.get("content-type", "").startswith("application/problem+json"):
        return Ended(f"the answer was HTTP {status}", blocked=True, status=status, wait=wait)
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.DecodeError:
        return Ended(f"the answer was HTTP {status}", blocked=True, status=status, wait=wait)
    kind = KINDS.get(problem.code)
    if kind is not None:
        code = kind.close
    else:  # of a newer gateway
        named = {401: UNAUTHORISED, 403: FORBIDDEN, 413: TOO_LARGE, 429: RATE_LIMITED}
        code = named.get(status, BAD_REQUEST if status < 500 else SERVER_ERROR)
    return Ended(problem.detail or problem.code, code=code, wait=wait)


def _placed(headers: httpx.Headers) -> list[Frame]:
    """What a welcome would say of where this client belongs."""
    partition = headers.get("ringcast-partition", "")
    number = int(partition) if partition.isdecimal() and len(partition) < 10 else None
    return [Welcome(node=headers.get("ringcast-node"), partition=number, home=headers.get("ringcast-home"))]


def _polled(response: httpx.Response) -> tuple[list[Frame], str]:
    """The frames of a poll, and the cursor for the next one."""
    cursor = response.headers.get("ringcast-cursor")
    if response.status_code == 204 and cursor:
        return [Checkpoint(cursor)], cursor
    if response.status_code != 200:
        raise answered(response.status_code, response.headers, response.content)
    try:
        answer = msgspec.json.decode(response.content, type=Answer)
    except msgspec.DecodeError as error:
        raise Ended(_said("the answer is none of Ringcast", error), blocked=True, status=200) from None
    return [*answer.resets, *answer.messages, Checkpoint(answer.cursor)], answer.cursor


def _closed(closed: ConnectionClosed) -> Ended:
    frame = closed.rcvd
    if frame is None:
        return Ended("the connection broke", blocked=True)
    if 4000 <= frame.code < 5000:
        return Ended(frame.reason, code=frame.code)
    return Ended(f"the connection was closed with {frame.code} {frame.reason}".rstrip())


def _failed(error: httpx.RequestError) -> Ended:
    """Where not even a connection is made, no other transport would do better."""
    reached = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    return Ended(_said("the connection failed", error), blocked=reached)


def _said(what: str, error: Exception) -> str:
    return f"{what}: {str(error) or type(error).__name__}"


def _number(header: str | None) -> float:
    """Seconds of a header; a date or nonsense counts as none."""
    try:
        return max(0.0, float(header)) if header else 0.0
    except ValueError:
        return 0.0
