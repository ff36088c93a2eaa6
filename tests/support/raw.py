"""Subscribers that cost next to nothing: they look for messages in the bytes and leave frames, chunks and JSON alone.

For tests with very many deliveries, where a proper client would be what is measured. Messages stand whole between
WebSocket frame headers and between HTTP chunk headers, so that looking for them needs neither.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
from contextlib import AbstractAsyncContextManager
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from tests.support.clients import decode_cursor
from tests.support.keys import bearer

_NEWS = re.compile(rb'\{"type":"(m)?(?:essage|reset)","channel":"[^"]*",(?:"reason":"[^"]*",)?"offset":(\d+)[,}]')
_LONGEST = 600  # bytes of what it finds: what is kept of one chunk for the next
_CURSOR = re.compile(rb'"cursor":"([A-Za-z0-9_-]+)"')
_PING = re.compile(rb"\x89(?:\x00|\x04(.{4}))", re.DOTALL)  # a server's; what is published to a raw client is ASCII
_OPENED = 30.0  # seconds; many of them open at once


class Raw(AbstractAsyncContextManager[Any]):
    """A subscriber of one channel. `seen` are the offsets of the messages as they came, a reset's as its negative."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.start = 0  # the position it was told at first
        self.seen: list[int] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""
        self._goal: tuple[int, asyncio.Future[None]] | None = None

    def look(self, data: bytes) -> None:
        data = self._rest + data
        end = 0
        for match in _NEWS.finditer(data):
            self.seen.append(int(match[2]) if match[1] else -int(match[2]))
            end = match.end()
        self._rest = data[max(end, len(data) - _LONGEST) :]
        if self._goal is not None and self.seen and self.seen[-1] >= self._goal[0]:
            self._goal[1].set_result(None)
            self._goal = None

    async def reach(self, offset: int, within: float = 60.0) -> None:
        """Wait until a message with this offset, or a later one, has come."""
        if not self.seen or self.seen[-1] < offset:
            self._goal = offset, asyncio.get_running_loop().create_future()
            async with asyncio.timeout(within):
                await asyncio.wait({self._goal[1], self.ended}, return_when=asyncio.FIRST_COMPLETED)
            assert self.seen[-1:] >= [offset], f"ended before {offset}, after {self.seen[-1:]}"

    async def close(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class RawStream(Raw, asyncio.Protocol):
    """Over WebSocket or SSE."""

    transport: asyncio.Transport
    answers_pings = False

    def __init__(self, channel: str) -> None:
        super().__init__(channel)
        self.head = b""  # all that came until the welcome
        self._welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(
        cls, transport: str, url: str, token: str, channel: str, *, cursor: str | None = None, query: str = "",
        receive_buffer: int = 0,
    ) -> Self:  # fmt: skip
        """Connect, and wait for the welcome; no more than `receive_buffer` bytes wait in the kernel for this client.

        `query` is more of the address's query, as it stands.
        """
        address = urlsplit(url)
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (address.hostname, address.port))
        _, client = await loop.create_connection(lambda: cls(channel), sock=sock)
        client.answers_pings = transport == "websocket"
        path = f"/v1/{'ws' if transport == 'websocket' else 'sse'}?channels={quote(channel)}{query and '&' + query}"
        lines = [
            f"GET {path}{'&cursor=' + cursor if cursor else ''} HTTP/1.1", f"Host: {address.netloc}",
            f"Authorization: Bearer {token}",
        ]  # fmt: skip
        if transport == "websocket":
            key = base64.b64encode(os.urandom(16)).decode()
            lines += [
                "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Protocol: ringcast.v1",
            ]  # fmt: skip
        client.transport.write("\r\n".join([*lines, "", ""]).encode())
        try:
            async with asyncio.timeout(_OPENED):
                await client._welcomed
        except BaseException:
            await client.close()
            raise
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._welcomed.done():
            self.head += data
            told = re.search(rb'"channel":%b,"offset":(\d+)[,}]' % f'"{self.channel}"'.encode(), self.head)
            if told is not None:
                self.start = int(told[1])
                self._welcomed.set_result(None)
        if self.answers_pings:
            for ping in _PING.finditer(data):
                payload = ping[1] or b""
                self.transport.write(b"\x8a%c\0\0\0\0%b" % (0x80 | len(payload), payload))
        self.look(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)
        if not self._welcomed.done():
            self._welcomed.set_exception(ConnectionError(f"ended before its welcome: {self.head!r}"))

    def send(self, text: str) -> None:
        """A text frame, without waiting until it has left; masked with zeros."""
        data = text.encode()
        size = len(data)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)  # in its shortest form
        self.transport.write(b"\x81" + length + b"\0\0\0\0" + data)

    async def close(self) -> None:
        self.transport.abort()
        await self.ended


class RawPoll(Raw):
    """A chain of polls."""

    def __init__(self, url: str, token: str, channel: str) -> None:
        super().__init__(channel)
        self._http = httpx.AsyncClient(
            base_url=url, headers=bearer(token), timeout=_OPENED, trust_env=False, verify=False
        )  # fmt: skip
        self._chain: asyncio.Task[None]

    @classmethod
    async def open(cls, url: str, token: str, channel: str) -> Self:
        """Poll once, to know where it stands, and go on polling."""
        client = cls(url, token, channel)
        cursor = await client._poll(None)
        client.start = decode_cursor(cursor)[channel]
        client._chain = asyncio.create_task(client._polls(cursor))
        client._chain.add_done_callback(lambda _: client.ended.set_result(None))
        return client

    async def _polls(self, cursor: str) -> None:
        while True:
            cursor = await self._poll(cursor)

    async def _poll(self, cursor: str | None) -> str:
        query = {"channels": self.channel} | ({"cursor": cursor} if cursor else {})
        answer = await self._http.get("/v1/poll", params=query)
        if answer.status_code == 204:
            return str(answer.headers["Ringcast-Cursor"])
        assert answer.status_code == 200, answer.text
        self.look(answer.content)
        cursors: list[bytes] = _CURSOR.findall(answer.content[-8192:])
        return cursors[-1].decode()

    async def close(self) -> None:
        self._chain.cancel()
        await asyncio.gather(self._chain, return_exceptions=True)
        await self._http.aclose()
