"""Subscriber: one iterator over all connections it takes."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Self
from urllib.parse import urlsplit

import httpx

from gateway.client.frames import Error, Event, Goodbye, Positions, Welcome
from gateway.client.links import LINKS, OPEN_WITHIN, Link, Opening
from gateway.client.reconnect import Ended, Reconnect
from gateway.errors import TOKEN_EXPIRED, reconnects
from gateway.message import check_channel

Token = str | Callable[[], str | Awaitable[str]]

log = logging.getLogger("ringcast.client")


class Subscriber:
    """Iterate over it to receive: `Message`, `Reset` where some may be missing, `Unsubscribed`.

    `token` is a JWT or a callable, async or not, that returns one; it is asked again when the gateway says that the
    token has expired. `channels` come on top of those that the token's own user has. `cursor` continues where an
    earlier subscriber stopped, over any transport; `since` (`earliest`, `latest`, a duration like `5m`, a time) says
    where to begin without one. `transport` "auto" takes the best one that gets through: WebSocket, then SSE, then
    polling; each is tried again from time to time, when a connection has ended.

    It comes back by itself whenever that can help. Iterating raises Refused or TokenExpired when it cannot, and what
    the token's callable raises; afterwards it has ended. Use it as a context manager, or `aclose` it, from the task
    that iterates.
    """

    def __init__(
        self, url: str, token: Token | None = None, channels: Iterable[str] = (), *, cursor: str | None = None,
        since: str | None = None, transport: str = "auto",
    ) -> None:  # fmt: skip
        """Raises ValueError for a URL, channel, cursor or transport that cannot be meant."""
        self._url = _checked(url)
        self._channels = tuple(map(check_channel, channels))
        self._positions = Positions(cursor)
        self._since = since
        self._links = [link for link in LINKS if transport in ("auto", link.name)]
        if not self._links:
            raise ValueError(f"there is no transport {transport!r}: use auto, ws, sse or poll")
        self._get_token = token
        self._token = token if isinstance(token, str) else None
        self._reconnect = Reconnect(len(self._links), refreshable=callable(token))
        self._transport: str | None = None
        self._http: httpx.AsyncClient | None = None
        self._events = self._run()

    @property
    def cursor(self) -> str | None:
        """Continues behind the last message that was iterated: keep it once that has been dealt with.

        None while no position is known, which is before the first connection.
        """
        return self._positions.cursor if self._positions else None

    @property
    def transport(self) -> str | None:
        """The transport of the present connection: ws, sse or poll; None while there is no connection."""
        return self._transport

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the connection; iterating ends too."""
        await self._events.aclose()

    def __repr__(self) -> str:
        return f"<Subscriber {self._url} {self._transport or 'not connected'}>"

    async def _run(self) -> AsyncGenerator[Event]:
        timeout = httpx.Timeout(OPEN_WITHIN, read=None)  # how long to wait for data is decided in _connection
        async with httpx.AsyncClient(timeout=timeout) as self._http:
            while True:
                link: Link = self._links[self._reconnect.rung](self._http)
                try:
                    async with aclosing(self._connection(link)) as events:
                        async for event in events:
                            yield event
                except Ended as end:
                    self._transport = None
                    if end.code == TOKEN_EXPIRED and callable(self._get_token):
                        self._token = None
                    delay = self._reconnect.ended(end)
                    log.info("%s ended: %s; connecting again in %.1f s", link.name, end.reason or end.code, delay)
                    await asyncio.sleep(delay)

    async def _connection(self, link: Link) -> AsyncGenerator[Event]:
        """What one connection brings, until it ends by raising Ended."""
        try:
            await link.open(Opening(
                self._url, await self._present_token(), self._channels, self.cursor, self._since,
            ))  # fmt: skip
            heartbeat, leave, said = 15.0, None, ""
            loop = asyncio.get_running_loop()
            while True:
                silence = (link.silence or 2 * heartbeat) if self._reconnect.open else OPEN_WITHIN
                end = loop.time() + silence
                try:
                    async with asyncio.timeout_at(end if leave is None else min(end, leave)):
                        frames = await link.receive()
                except TimeoutError:
                    if leave is not None and loop.time() >= leave:
                        raise Ended("the node said goodbye", planned=True) from None
                    raise Ended(f"nothing came for {silence:g} s", blocked=True) from None
                except Ended as ended:
                    ended.reason = ended.reason or said
                    ended.planned = ended.planned or leave is not None
                    raise
                for frame in frames:
                    event = self._positions.take(frame)
                    if isinstance(frame, Error):
                        said = frame.message or frame.code
                        log.info("the gateway says: %s", said)
                        continue
                    if isinstance(frame, Goodbye):
                        leave = loop.time() + self._after(frame)
                        continue
                    if not self._reconnect.open:
                        self._opened(link)
                    if isinstance(frame, Welcome):
                        heartbeat = frame.heartbeat_ms / 1000
                    if event is not None:
                        yield event
        finally:
            await link.close()

    def _opened(self, link: Link) -> None:
        self._reconnect.opened()
        self._transport = link.name
        log.info("connected over %s", link.name)
        self._since = None  # from here on there is a position for every channel

    def _after(self, goodbye: Goodbye) -> float:
        """The seconds to stay after a goodbye. Raises Ended where it is to take effect at once."""
        wait = (goodbye.after_ms or 0) / 1000
        reason = goodbye.hint or "the node said goodbye"
        if not reconnects(goodbye.code) or not goodbye.reconnect:
            raise Ended(reason, code=goodbye.code, final=True)
        if goodbye.code == TOKEN_EXPIRED:
            raise Ended(reason, code=goodbye.code)
        if not self._reconnect.open or goodbye.after_ms is None:  # it never let us in, or gives no time to stay
            raise Ended(reason, code=goodbye.code, wait=wait)
        return wait

    async def _present_token(self) -> str | None:
        if self._token is None and callable(self._get_token):
            token = self._get_token()
            self._token = await token if inspect.isawaitable(token) else token
        return self._token


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("the gateway's URL must not hold a user or password: the token goes in `token`")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"the gateway's URL must look like https://host[:port][/path], not {url!r}")
    return url.rstrip("/")
