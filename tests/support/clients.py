"""One plain client for each transport, all with the same few verbs, as a strict subscriber would write them.

    async with await connect("sse", gateway.url, token("ann"), channels=["topic:news"]) as client:
        message = await client.message()
        await client.cut()
    later = await connect("poll", gateway.url, token("ann"), channels=["topic:news"], cursor=client.cursor)

A client keeps the position of each channel, of the frames that were *received from it* (not merely arrived), and fails
at once where a message's offset is not above it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.errors import KINDS
from tests.support.sse import Event, Parser

Frame = dict[str, Any]
WITHIN = 10.0  # seconds; for what is due at once
OPENS = 60.0  # to be let in, where a thousand ask for it on a busy machine
TRANSPORTS = ("websocket", "sse", "poll")


class Refused(Exception):
    """The gateway did not let this client in; `code` is a number of the table of close codes."""

    def __init__(self, code: int, status: int | None, problem: Frame) -> None:
        super().__init__(f"{code} (HTTP {status}): {problem}")
        self.code = code
        self.status = status
        self.problem = problem


class Ended(Exception):
    """The gateway, or the network, ended the connection; `code` is what the gateway gave as its reason."""

    def __init__(self, code: int | None, why: str = "") -> None:
        super().__init__(f"{code} {why}")
        self.code = code


def encode_cursor(positions: dict[str, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(positions, ensure_ascii=False).encode()).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> dict[str, int]:
    positions: dict[str, int] = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return positions


async def connect(
    transport: str, url: str, token: str, *, channels: Iterable[str] = (), cursor: str | None = None,
    since: str | None = None, snapshot: bool = False, body: bool = False, headers: dict[str, str] | None = None,
) -> Client:  # fmt: skip
    """Open a session; raises Refused.

    The token travels as a Bearer header, the rest in the query or, with `body`, in WebSocket's connect frame or POSTed.
    `token` may be empty, for credentials in `headers`.
    """
    wanted = {"channels": list(channels), "cursor": cursor, "since": since, "snapshot": snapshot}
    client = _CLIENTS[transport](url, token, {k: v for k, v in wanted.items() if v}, body, headers or {})
    try:
        await client.open()
        await client.look()
    except BaseException:
        await client.close()
        raise
    if cursor is not None:
        client.positions = decode_cursor(cursor)
    return client


class Client(ABC):
    """A session over one transport."""

    transport: ClassVar[str]

    def __init__(self, url: str, token: str, wanted: dict[str, Any], body: bool, headers: dict[str, str]) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self.wanted = wanted
        self.body = body
        self.headers = headers | ({"Authorization": f"Bearer {token}"} if token else {})
        self.positions: dict[str, int] = {}
        self.goodbye: Frame | None = None
        self._first: Frame | None = None

    @property
    def cursor(self) -> str:
        """Resumes behind everything that was received."""
        return encode_cursor(self.positions)

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def _next(self) -> Frame:
        """The next frame, whenever it comes; raises Ended."""

    @abstractmethod
    async def cut(self) -> None:
        """End it as a lost network would: no goodbye, a reset on the TCP connection, nothing awaited."""

    @abstractmethod
    async def close(self) -> None:
        """End it in good order; harmless when it has ended already."""

    async def look(self) -> None:
        """Wait for the first frame and leave it to be received; the positions it tells are known from here on."""
        async with asyncio.timeout(OPENS):
            self._first = await self._next()
        if self._first["type"] in ("welcome", "checkpoint"):
            self._note(self._first)

    async def _following(self) -> Frame:
        if self._first is None:
            return await self._next()
        first, self._first = self._first, None
        return first

    async def receive(self, within: float = WITHIN) -> Frame:
        """The next frame of any type; raises Ended, or TimeoutError when none comes `within` so many seconds."""
        async with asyncio.timeout(within):
            frame = await self._following()
        self._note(frame)
        return frame

    async def frame(self, *types: str, within: float = WITHIN) -> Frame:
        """The next frame of one of these types, others before it passed over."""
        async with asyncio.timeout(within):
            while True:
                frame = await self._following()
                self._note(frame)
                if frame["type"] in types:
                    return frame

    async def message(self, within: float = WITHIN) -> Frame:
        """The next message. A reset in its place fails; whoever expects one asks for it by `frame`."""
        frame = await self.frame("message", "reset", within=within)
        assert frame["type"] == "message", f"a reset instead of a message: {frame}"
        return frame

    async def messages(self, count: int, within: float = WITHIN) -> list[Frame]:
        async with asyncio.timeout(within):
            return [await self.message(within) for _ in range(count)]

    async def joined(self, within: float = WITHIN) -> dict[str, int]:
        """Receive until it was told where it stands; returns the position of each channel.

        For those that present no position: with one, a poll's answer begins with what follows it.
        """
        await self.frame("welcome" if self.transport != "poll" else "checkpoint", within=within)
        return dict(self.positions)

    async def through(self, offset: int, within: float = WITHIN) -> list[Frame]:
        """The messages and resets up to the message with this offset, others between them passed over."""
        found: list[Frame] = []
        async with asyncio.timeout(within):
            while not found or found[-1]["type"] == "reset" or found[-1]["offset"] != offset:
                found.append(await self.frame("message", "reset", within=within))
        return found

    async def ended(self, within: float = WITHIN) -> int | None:
        """Receive until the connection ends; returns the reason's code."""
        try:
            async with asyncio.timeout(within):
                while True:
                    self._note(await self._following())
        except Ended as end:
            return end.code

    def _note(self, frame: Frame) -> None:
        kind = frame["type"]
        if kind == "message":
            channel, offset = frame["channel"], frame["offset"]
            assert offset > self.positions.get(channel, 0), f"not above {self.positions[channel]}: {frame}"
            self.positions[channel] = offset
        elif kind in ("reset", "subscribed"):
            self.positions[frame["channel"]] = frame["offset"]
        elif kind == "welcome":
            self.positions |= {each["channel"]: each["offset"] for each in frame.get("channels", ())}
        elif kind == "unsubscribed":
            self.positions.pop(frame["channel"], None)
        elif kind == "goodbye":
            self.goodbye = frame
        if frame.get("cursor"):
            self.positions |= decode_cursor(frame["cursor"])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class WebSocketClient(Client):
    transport = "websocket"
    connection: ClientConnection | None = None

    async def open(self) -> None:
        query = {} if self.body else _query(self.wanted)
        address = httpx.URL("ws" + self.url.removeprefix("http") + "/v1/ws", params=query)
        headers = {} if self.body and self.token else self.headers
        try:
            self.connection = await connect_websocket(
                str(address), additional_headers=headers, subprotocols=["ringcast.v1"], compression=None,  # type: ignore[list-item]
                max_size=None, ping_interval=None, proxy=None, open_timeout=OPENS, close_timeout=0.2,
            )  # fmt: skip
        except InvalidStatus as refusal:
            status, body = refusal.response.status_code, refusal.response.body or b"{}"
            raise _refusal(status, body) from refusal
        if self.body:
            await self.send({"type": "connect", "token": self.token or None, **self.wanted})

    async def look(self) -> None:
        try:
            await super().look()
        except Ended as end:  # the handshake was completed only to say this
            raise Refused(end.code or 0, None, {"detail": str(end)}) from end

    async def send(self, frame: Frame) -> None:
        assert self.connection is not None
        await self.connection.send(json.dumps({k: v for k, v in frame.items() if v is not None}))

    async def _next(self) -> Frame:
        assert self.connection is not None
        try:
            frame: Frame = json.loads(await self.connection.recv())
        except ConnectionClosed as closed:
            reason = closed.rcvd
            raise Ended(reason.code if reason else None, reason.reason if reason else "cut") from closed
        return frame

    async def cut(self) -> None:
        assert self.connection is not None
        reset_on_close(self.connection.transport.get_extra_info("socket"))
        self.connection.transport.abort()

    async def close(self) -> None:
        if self.connection is not None:
            await self.connection.close()


class SSEClient(Client):
    """Frames are the events' data; a checkpoint is told as a frame of type `checkpoint`."""

    transport = "sse"
    response: httpx.Response | None = None

    async def open(self) -> None:
        self.http = _http(self.url, self.headers)
        self.parser = Parser()
        self.last_event_id = ""  # what an EventSource would send when it comes back
        self._arrived: asyncio.Queue[Frame | Exception] = asyncio.Queue()
        request = (
            self.http.build_request("POST", "/v1/sse", json=self.wanted) if self.body
            else self.http.build_request("GET", "/v1/sse", params=_query(self.wanted))
        )  # fmt: skip
        async with asyncio.timeout(OPENS):
            self.response = await self.http.send(request, stream=True)
            if self.response.status_code != 200:
                raise _refusal(self.response.status_code, await self.response.aread())
        self._reader = asyncio.create_task(self._read(self.response))

    async def _read(self, response: httpx.Response) -> None:
        """Its own task, so that a receive that times out leaves the stream as it is."""
        try:
            async for chunk in response.aiter_raw():
                for event in self.parser.feed(chunk):
                    self._arrived.put_nowait(self._frame(event))
        except httpx.TransportError as error:
            self._arrived.put_nowait(Ended(None, repr(error)))
        except Exception as error:  # told to whoever receives next
            self._arrived.put_nowait(error)
        else:
            self._arrived.put_nowait(Ended(None, "the stream ended"))

    def _frame(self, event: Event) -> Frame:
        if event.data is None:
            return {"type": "checkpoint", "cursor": event.last_id}
        frame: Frame = json.loads(event.data)
        expected = frame["event"] if frame["type"] == "message" else f"ringcast.{frame['type']}"
        assert event.event == expected, f"event: {event.event} for {frame}"
        return frame

    async def _next(self) -> Frame:
        frame = await self._arrived.get()
        if isinstance(frame, Exception):
            self._arrived.put_nowait(frame)  # for whoever asks again
            if isinstance(frame, Ended) and self.goodbye:
                raise Ended(self.goodbye["code"], str(frame))
            raise frame
        if frame["type"] == "checkpoint":
            self.last_event_id = frame["cursor"]
        return frame

    async def cut(self) -> None:
        assert self.response is not None
        reset_on_close(self.response.extensions["network_stream"].get_extra_info("socket"))
        await self.close()

    async def close(self) -> None:
        if self.response is not None and hasattr(self, "_reader"):
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            await self.response.aclose()
        await self.http.aclose()


class PollClient(Client):
    """A chain of long polls; each answer is told as its resets, a `snapshot` where there is one, and its messages."""

    transport = "poll"
    wait = 25.0  # seconds; what each poll asks for

    async def open(self) -> None:
        self.http = _http(self.url, self.headers)
        self._chain = self.wanted.get("cursor")
        self._arrived: deque[Frame] = deque()
        await self._poll(wait=0, refuse=True)

    async def _poll(self, wait: float, refuse: bool = False) -> None:
        wanted = self.wanted | ({"cursor": self._chain} if self._chain else {})
        if not refuse:
            wanted.pop("since", None)  # only the first poll of a chain has no cursor yet
            wanted.pop("snapshot", None)
        try:
            if self.body:
                response = await self.http.post("/v1/poll", json=wanted | {"wait": wait})
            else:
                response = await self.http.get("/v1/poll", params=_query(wanted | {"wait": wait}))
        except httpx.TransportError as error:
            raise Ended(None, repr(error)) from error
        if response.status_code == 204:
            self._told({"cursor": response.headers["Ringcast-Cursor"]})
        elif response.status_code == 200:
            self._told(response.json())
        elif refuse:
            raise _refusal(response.status_code, response.content)
        else:
            raise Ended(_refusal(response.status_code, response.content).code, response.text)

    def _told(self, answer: Frame) -> None:
        self._arrived += [{"type": "reset"} | reset for reset in answer.get("resets", ())]
        if "snapshot" in answer:
            self._arrived.append({"type": "snapshot", "snapshot": answer["snapshot"]})
        self._arrived += answer.get("messages", ())
        self._arrived.append({"type": "checkpoint", "cursor": answer["cursor"]})
        self._chain = answer["cursor"]

    async def _next(self) -> Frame:
        while not self._arrived:
            await self._poll(self.wait)
        return self._arrived.popleft()

    async def cut(self) -> None:
        await self.close()  # between two polls there is nothing to cut, and one under way is cut with its connection

    async def close(self) -> None:
        await self.http.aclose()


_CLIENTS: dict[str, type[Client]] = {"websocket": WebSocketClient, "sse": SSEClient, "poll": PollClient}


def _query(wanted: dict[str, Any]) -> dict[str, str]:
    """The parameters as a GET carries them."""
    return {
        name: ",".join(value) if isinstance(value, list) else "true" if value is True else str(value)
        for name, value in wanted.items()
    }


def _http(url: str, headers: dict[str, str]) -> httpx.AsyncClient:
    timeout = httpx.Timeout(OPENS, read=None)
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False, verify=False)


def _refusal(status: int, body: bytes | bytearray) -> Refused:
    problem: Frame = json.loads(body)
    return Refused(KINDS[problem["code"]].close, status, problem)


def reset_on_close(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
