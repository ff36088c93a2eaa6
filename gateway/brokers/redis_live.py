"""One connection to one Redis server that only listens: a hiredis reader on a bare asyncio protocol.

redis-py's own pub/sub costs ten times as much a message, and stays silent for ever after the network was cut
(redis/redis-py#2417). Here every frame is one plain call, and silence has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import hiredis

log = logging.getLogger("ringcast.redis")

OnFrame = Callable[[bytes, bytes], None]  # subject, payload


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and how to log in there."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"{self.host}:{self.port}"


class LiveError(ConnectionError):
    """The server refused what it was asked, or has gone."""


class LiveConnection(asyncio.Protocol):
    """Subscribes to subjects and passes each payload on. `closed` is done when the connection is over.

    With `sharded`, subjects are shard channels; one that the server unsubscribes by itself, because its slot moves, is
    told to `on_lost`.
    """

    def __init__(self, sharded: bool, on_frame: OnFrame, on_lost: Callable[[bytes], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard_at = asyncio.get_running_loop().time()
        self._sharded = sharded
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport
        self._replies: list[asyncio.Future[Any]] = []
        self._confirm: dict[bytes, asyncio.Future[None]] = {}
        self._leaving: set[bytes] = set()

    @classmethod
    async def open(
        cls, address: Address, sharded: bool, on_frame: OnFrame, on_lost: Callable[[bytes], None], within: float
    ) -> LiveConnection:
        """Connect and log in. Raises OSError, LiveError or TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(within):
            _, connection = await loop.create_connection(
                lambda: cls(sharded, on_frame, on_lost), address.host, address.port, ssl=address.tls
            )
            try:
                if address.password is not None:
                    await connection.call("AUTH", *filter(None, (address.username, address.password)))
            except BaseException:
                connection.close()
                raise
        return connection

    async def subscribe(self, subjects: Iterable[bytes], within: float) -> None:
        """Returns when the server has confirmed every subject. Raises LiveError or TimeoutError."""
        loop = asyncio.get_running_loop()
        if self.closed.done():
            raise LiveError("the connection to Redis has ended")
        asked = list(subjects)
        self._leaving.difference_update(asked)
        waiting = [self._confirm.setdefault(subject, loop.create_future()) for subject in asked]
        self._send_about(b"SSUBSCRIBE" if self._sharded else b"SUBSCRIBE", asked)
        if not waiting:
            return
        # Not gather(): a wait that is given up would cancel what the next one for the same subject waits for.
        done, late = await asyncio.wait(waiting, timeout=within)
        for future in done:
            future.result()
        if late:
            raise TimeoutError(f"{len(late)} subscriptions were not confirmed within {within:g} s")

    def unsubscribe(self, subjects: Iterable[bytes]) -> None:
        asked = list(subjects)
        self._leaving.update(asked)
        if asked and not self.closed.done():
            self._send_about(b"SUNSUBSCRIBE" if self._sharded else b"UNSUBSCRIBE", asked)

    def ping(self) -> None:
        """Ask for a sign of life; it shows in `heard_at`."""
        if not self.closed.done():
            self._send(b"PING")

    async def call(self, *words: str) -> Any:
        """One command before any subscription."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies.append(future)
        self._send(*(word.encode() for word in words))
        return await future

    def close(self) -> None:
        self._transport.abort()

    def _send(self, *words: bytes) -> None:
        self._transport.write(_packed(words))

    def _send_about(self, verb: bytes, subjects: list[bytes]) -> None:
        """All in one write. A command about several shard channels may name those of one slot only."""
        together = 1 if self._sharded else 100
        self._transport.write(
            b"".join(_packed((verb, *subjects[n : n + together])) for n in range(0, len(subjects), together))
        )

    # ---------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods alone

    def data_received(self, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        gets, on_frame, kind = self._reader.gets, self._on_frame, b"smessage" if self._sharded else b"message"
        self._reader.feed(data)
        try:
            while (reply := gets()) is not False:
                if type(reply) is list and reply[0] == kind:
                    on_frame(reply[1], reply[2])
                else:
                    self._other(reply)
        except hiredis.ProtocolError as error:  # what is at the other end is no Redis
            log.warning("no answer of a Redis server: %s", error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        for future in [*self._replies, *self._confirm.values()]:
            if not future.done():
                future.set_exception(LiveError(f"the connection to Redis ended: {exc or 'closed by the server'}"))
                future.exception()  # whoever waited may have left

    def _other(self, reply: Any) -> None:
        if isinstance(reply, list) and len(reply) == 3 and reply[0] in (b"subscribe", b"ssubscribe"):
            future = self._confirm.pop(reply[1], None)
            if future is not None and not future.done():
                future.set_result(None)
        elif isinstance(reply, list) and len(reply) == 3 and reply[0] in (b"unsubscribe", b"sunsubscribe"):
            if reply[1] in self._leaving:
                self._leaving.discard(reply[1])
            else:
                self._on_lost(reply[1])
        elif isinstance(reply, hiredis.ReplyError):
            error = LiveError(str(reply))
            waiting = self._replies or list(self._confirm.values())
            if self._replies:
                self._replies.pop(0)
                waiting = waiting[:1]
            else:
                self._confirm.clear()
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
                    future.exception()
        elif self._replies:
            future = self._replies.pop(0)
            if not future.done():
                future.set_result(reply)


def _packed(words: Iterable[bytes]) -> bytes:
    """A command as Redis reads it."""
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))
