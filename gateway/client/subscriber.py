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

from gateway.client.connection import Connection
from gateway.client.frames import Event, Frame, Goodbye, Positions, Welcome
from gateway.client.links import LINKS, OPEN_WITHIN, Opening, tls
from gateway.client.place import HOME_WITHIN, Place
from gateway.client.reconnect import Ended, Reconnect
from gateway.client.watch import Unwatched, Watch
from gateway.errors import DRAINING, TOKEN_EXPIRED
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

    Where nodes say at which of them it is best placed, it connects there next time (polls: from the next one on), and
    falls back to `url` at once when that fails. It goes to the host of `url` and those below it, and to `homes`: hosts,
    or `*.` and a domain. `partition` is what proxies place the first connection by, where that is known already.
    `watch` is told of each connection.

    It comes back by itself whenever that can help. Iterating raises Refused or TokenExpired when it cannot, and what
    the token's callable raises; afterwards it has ended. Use it as a context manager, or `aclose` it, from the task
    that iterates.
    """

    def __init__(
        self, url: str, token: Token | None = None, channels: Iterable[str] = (), *, cursor: str | None = None,
        since: str | None = None, transport: str = "auto", partition: int | None = None, homes: Iterable[str] = (),
        watch: Watch | None = None,
    ) -> None:  # fmt: skip
        """Raises ValueError for a URL, channel, cursor, transport or home that cannot be meant."""
        self._place = Place(_checked(url), partition, homes)
        self._channels = tuple(map(check_channel, channels))
        self._positions = Positions(cursor)
        self._since = since
        self._links = [link for link in LINKS if transport in ("auto", link.name)]
        if not self._links:
            raise ValueError(f"there is no transport {transport!r}: use auto, ws, sse or poll")
        self._get_token = token
        self._token = token if isinstance(token, str) else None
        self._reconnect = Reconnect(len(self._links), refreshable=callable(token))
        self._watch = watch or Unwatched()
        self._transport: str | None = None
        self._node: str | None = None
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

    @property
    def node(self) -> str | None:
        """The name of the node that was heard of last."""
        return self._node

    @property
    def partition(self) -> int | None:
        """The partition of the token's user, by which proxies may place it; None where the gateway has not said."""
        return self._place.partition

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
        return f"<Subscriber {self._place.url} {self._transport or 'not connected'}>"

    async def _run(self) -> AsyncGenerator[Event]:
        timeout = httpx.Timeout(OPEN_WITHIN, read=None)  # how long to wait for data is each connection's own affair
        # No redirect is followed, and no home has another scheme.
        async with httpx.AsyncClient(timeout=timeout, verify=tls(self._place.url) or False) as self._http:
            while True:
                at = self._place.now
                try:
                    async with aclosing(self._stay(await self._open(at))) as events:
                        async for event in events:
                            yield event
                except Ended as end:
                    self._transport = None
                    self._heed(end)
                    if at != self._place.url and not self._reconnect.open:
                        self._stray(at, end)
                        continue
                    delay = self._reconnect.ended(end)
                    log.info("the connection ended: %s; connecting again in %.1f s", end.reason or end.code, delay)
                    await asyncio.sleep(delay)

    async def _open(self, at: str) -> Connection:
        """A connection to `at` that let us in. Raises Ended."""
        assert self._http is not None
        connection = Connection(self._links[self._reconnect.rung](self._http), self._watch)
        opening = Opening(at, self._place, await self._present_token(), self._channels, self.cursor, self._since)
        await connection.open(opening, None if at == self._place.url else HOME_WITHIN)
        return connection

    async def _stay(self, here: Connection) -> AsyncGenerator[Event]:
        """What a connection brings, and those that take its place, until one ends, by raising Ended.

        When a goodbye's time has come the next one is opened beside it, and takes its place once that is done: so there
        is always one that receives.
        """
        beside: asyncio.Task[Connection] | None = None
        self._enter(here)
        try:
            while True:
                try:
                    for frame in here.frames:
                        event = self._positions.take(frame, beside=beside is not None)
                        here.take(frame)
                        self._follow(here, frame)
                        if event is not None:
                            yield event
                    await here.receive(beside)
                except Ended as end:
                    await here.leave(end)
                    if beside is None:
                        raise
                    await asyncio.wait([beside])
                    if beside.exception() is not None:
                        raise
                if beside is not None and beside.done():
                    following, beside = beside, None
                    if (error := following.exception()) is None:
                        await here.leave()
                        here = following.result()
                        self._enter(here)
                    else:
                        if isinstance(error, Ended):
                            self._heed(error)
                        here.leave_in(self._reconnect.soon())  # meanwhile it goes on receiving
                elif beside is None and here.due():
                    if not self._reconnect.settled:
                        raise Ended("the node said goodbye", planned=True)
                    beside = asyncio.create_task(self._open_beside())
        finally:
            await here.leave()
            if beside is not None:
                beside.cancel()
                await asyncio.wait([beside])
                if not beside.cancelled() and beside.exception() is None:
                    await beside.result().leave()

    async def _open_beside(self) -> Connection:
        at = self._place.now
        try:
            return await self._open(at)
        except Ended as end:
            if at == self._place.url:
                raise
            self._stray(at, end)
            return await self._open(self._place.url)

    def _enter(self, here: Connection) -> None:
        self._reconnect.opened()
        self._transport = here.link.name
        self._since = None  # from here on there is a position for every channel
        for frame in here.frames:
            self._follow(here, frame)
        log.info("connected over %s to %s", here.link.name, self._node or here.link.at)

    def _follow(self, here: Connection, frame: Frame) -> None:
        """Go by what a frame says of where to be."""
        if isinstance(frame, Welcome):
            self._node = frame.node
            self._place.told(here.link.at, frame.partition, frame.home)
        elif isinstance(frame, Goodbye) and frame.code == DRAINING:
            self._place.forget(here.link.at)

    def _stray(self, home: str, end: Ended) -> None:
        log.info("%s does not let us in: %s; back to %s", home, end.reason or end.code, self._place.url)
        self._place.leave(home, end.code)

    def _heed(self, end: Ended) -> None:
        if end.code == TOKEN_EXPIRED and callable(self._get_token):
            self._token = None

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
