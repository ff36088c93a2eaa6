"""One connection of a subscriber: from the attempt to its end, and between them its frames."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.client.frames import Error, Frame, Goodbye, Welcome
from gateway.client.links import OPEN_WITHIN, Link, Opening
from gateway.client.reconnect import Ended
from gateway.client.watch import Watch
from gateway.errors import TOKEN_EXPIRED, reconnects


class Connection:
    """`frames` are those that came last; each is to be given to `take`."""

    def __init__(self, link: Link, watch: Watch) -> None:
        self.link = link
        self.frames: list[Frame] = []
        self._watch = watch
        self._heartbeat = 15.0
        self._heard = 0.0
        self._said = ""
        self._told = False  # by a goodbye
        self._leave_at: float | None = None
        self._receiving: asyncio.Future[list[Frame]] | None = None
        self._over = False

    async def open(self, opening: Opening, within: float | None) -> None:
        """Wait for the first frames, which show that it let us in. Raises Ended, and then it is over."""
        self._watch.opening(self.link, opening.cursor)
        try:
            async with asyncio.timeout(within):
                await self.link.open(opening)
            while not self.frames:
                async with asyncio.timeout(within or OPEN_WITHIN):
                    frames = await self._receive()
                for frame in frames:
                    if not isinstance(frame, Error | Goodbye):
                        self.frames = frames
                        break
                    self._watch.frame(self.link, frame)
                    if isinstance(frame, Goodbye):
                        raise _turned_away(frame)
                    self._said = frame.message or frame.code
        except TimeoutError:
            end = Ended(f"nothing came for {within or OPEN_WITHIN:g} s", blocked=True)
            await self.leave(end)
            raise end from None
        except BaseException as error:
            await self.leave(error if isinstance(error, Ended) else None)
            raise
        self._heard = asyncio.get_running_loop().time()

    async def receive(self, beside: asyncio.Future[Connection] | None) -> None:
        """Get the next frames; none when it is time to leave, or `beside` is done. Raises Ended."""
        self.frames = []
        now = asyncio.get_running_loop().time
        silence = self.link.silence or 2 * self._heartbeat
        silent_at = self._heard + silence
        try:
            if self._leave_at is None and beside is None:
                async with asyncio.timeout_at(silent_at):
                    self.frames = await self._receive()
            else:  # a task, because a link's receive that was cancelled could not be gone on with
                self._receiving = self._receiving or asyncio.ensure_future(self._receive())
                until = silent_at if self._leave_at is None else min(silent_at, self._leave_at)
                awaited: list[asyncio.Future[Any]] = [self._receiving, *([] if beside is None else [beside])]
                await asyncio.wait(awaited, timeout=max(0.0, until - now()), return_when=asyncio.FIRST_COMPLETED)
                if self._receiving.done():
                    received, self._receiving = self._receiving, None
                    self.frames = received.result()
                elif now() >= silent_at:
                    raise TimeoutError
                else:
                    return
        except TimeoutError:
            raise Ended(f"nothing came for {silence:g} s", blocked=True) from None
        self._heard = now()

    async def _receive(self) -> list[Frame]:
        return list(await self.link.receive())

    def take(self, frame: Frame) -> None:
        """Go by what a frame says of the connection. Raises Ended for a goodbye that is to take effect at once."""
        self._watch.frame(self.link, frame)
        if isinstance(frame, Error):
            self._said = frame.message or frame.code
        elif isinstance(frame, Welcome):
            self._heartbeat = frame.heartbeat_ms / 1000
        elif isinstance(frame, Goodbye):
            if frame.code == TOKEN_EXPIRED or frame.after_ms is None or not _comes_back(frame):
                raise _turned_away(frame)
            self._told = True
            self.leave_in(frame.after_ms / 1000)

    def leave_in(self, seconds: float) -> None:
        self._leave_at = asyncio.get_running_loop().time() + seconds

    def due(self) -> bool:
        """Whether the time to leave has come; once."""
        if self._leave_at is None or asyncio.get_running_loop().time() < self._leave_at:
            return False
        self._leave_at = None
        return True

    async def leave(self, end: Ended | None = None) -> None:
        """Close it, for that reason or because there is another one."""
        if self._over:
            return
        self._over = True
        if end is not None:
            end.reason = end.reason or self._said
            end.planned = end.planned or self._told
        self._watch.ended(self.link, end)
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait([self._receiving])
        await self.link.close()


def _comes_back(goodbye: Goodbye) -> bool:
    return goodbye.reconnect and reconnects(goodbye.code)


def _turned_away(goodbye: Goodbye) -> Ended:
    reason = goodbye.hint or "the node said goodbye"
    if not _comes_back(goodbye):
        return Ended(reason, code=goodbye.code, final=True)
    wait = 0.0 if goodbye.code == TOKEN_EXPIRED else (goodbye.after_ms or 0) / 1000
    return Ended(reason, code=goodbye.code, wait=wait)
