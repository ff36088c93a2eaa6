"""Publishing a line at a time: each line is one publish and is answered by one line, in constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.types import Message, Receive

from gateway.brokers.base import Receipt
from gateway.errors import Problem
from gateway.http import NDJSON, Stream, encode
from gateway.identity import Identity
from gateway.message import Draft
from gateway.node import Node
from gateway.publish import Refusal, body_limit, parse
from gateway.results import AT_A_TIME, check_unexpired, publish_each

PIECE = 16 << 10  # bytes of answers that are sent together at least, while there are lines to go on with
MAX_HELD = 1000  # channels of an ordered stream that wait for one of their messages to be sent again
IDLE = 1.0  # seconds without a line after which a node that shuts down ends the stream


class Lines:
    """Cuts chunks into numbered lines. Holds at most `limit` bytes of the line that is not complete yet."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.number = 0  # of the last complete line, from 1
        self._held = bytearray()
        self._overlong = False  # the line at hand was told already; its rest is thrown away

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The lines this chunk completes with their numbers; None for one above the limit. Blank ones only count."""
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            if self._held or self._overlong or len(line) > self.limit:
                yield from self._add(line)
                yield from self.end()
            else:
                self.number += 1
                if line.strip(b" \t\r"):
                    yield self.number, line
        yield from self._add(rest)

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        """The line at hand is complete: a line break, or the end of the stream."""
        self.number += 1
        line = bytes(self._held)
        self._held.clear()
        if not self._overlong and line.strip(b" \t\r"):
            yield self.number, line
        self._overlong = False

    def _add(self, piece: bytes) -> Iterator[tuple[int, bytes | None]]:
        if self._overlong:
            return
        if len(self._held) + len(piece) > self.limit:
            self._held.clear()
            self._overlong = True
            yield self.number + 1, None
        else:
            self._held += piece


class Ingest(Stream):
    """Answers lines while the next ones arrive; a client has to read while it writes.

    Lines that came together are on their way to the store together, which keeps the order of each channel's.

    `ordered` is for whoever sends again what may pass later (429, 5xx): after such a line no other of its channels is
    published, or the line would come behind them. The stream ends where there would be too many to remember.
    """

    def __init__(self, node: Node, identity: Identity, *, ordered: bool = False) -> None:
        super().__init__(node.settings.stuck_after, NDJSON)
        self._held: set[str] | None = set() if ordered else None
        self._node = node
        self._settings = node.settings
        self._identity = identity

    async def pieces(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        lines = Lines(body_limit(self._settings))
        answers = bytearray()
        more = True
        while more:
            event = await self._arrival(receive)
            if event is None or event["type"] == "http.disconnect":
                return
            more = event.get("more_body", False)
            for window in self._windows(_all(lines, event.get("body", b""), more)):
                answers += await self._publish(window)
                if self._held is not None and len(self._held) > MAX_HELD:
                    yield bytes(answers)
                    return
                await asyncio.sleep(0)  # others have their turn
                if len(answers) >= PIECE:
                    yield bytes(answers)
                    answers.clear()
            if answers:
                yield bytes(answers)
                answers.clear()

    async def _arrival(self, receive: Receive) -> Message | None:
        """What the client sends next, however long that takes; None when the node shuts down and nothing comes."""
        while True:
            try:
                async with asyncio.timeout(IDLE):
                    return await receive()
            except TimeoutError:
                if self._node.admission.closed:
                    return None

    def _windows(self, lines: Iterator[tuple[int, bytes | None]]) -> Iterator[Window]:
        """The lines in windows that may be stored together.

        In an ordered stream that is one line of each channel, for the next one has to wait for what becomes of it.
        """
        window = Window()
        for number, line in lines:
            found = self._read(line)
            items = [] if isinstance(found, Problem) else found
            channels = {item.channel for item in items} if self._held is not None else ()
            full = window.size + len(items) > AT_A_TIME
            if window.lines and (full or not window.channels.isdisjoint(channels)):
                yield window
                window = Window()
            window.lines.append((number, found))
            window.size += len(items) or 1
            window.channels.update(channels)
        if window.lines:
            yield window

    def _read(self, line: bytes | None) -> list[Draft | Refusal] | Problem:
        try:
            if line is None:
                limit = body_limit(self._settings)
                raise Problem("too_large", f"The line has more than the {limit} bytes that are taken", limit=limit)
            return parse(line, self._settings, self._identity.principal)
        except Problem as problem:
            return problem

    async def _publish(self, window: Window) -> bytes:
        """The answers to a window of lines."""
        self._judge(window)
        items = [item for _, found in window.lines if isinstance(found, list) for item in found]
        results = await publish_each(self._node, self._identity, items)
        if self._held is not None:
            self._held.update(channel for result in results if (channel := _may_pass(result)) is not None)
        answers, at = [], 0
        for number, found in window.lines:
            if isinstance(found, Problem):
                answers.append(encode({"line": number, "error": found.as_json()}))
            else:
                answers.append(encode({"line": number, "results": results[at : at + len(found)]}))
                at += len(found)
        return b"\n".join([*answers, b""])

    def _judge(self, window: Window) -> None:
        """Refuse what may not be published any more, or not yet."""
        try:
            check_unexpired(self._identity)
            self._node.auth.check(self._identity)
        except Problem as problem:
            window.lines = [(number, problem) for number, _ in window.lines]
        if not self._held:
            return
        for place, (number, found) in enumerate(window.lines):
            if isinstance(found, list) and not self._held.isdisjoint(channels := {item.channel for item in found}):
                self._held |= channels
                detail = "An earlier line of this channel may pass later: send it and this again"
                window.lines[place] = number, Problem("unavailable", detail)


class Window:
    """Lines that are on their way to the store together: their numbers, and what each asks for or why it is refused."""

    __slots__ = ("channels", "lines", "size")

    def __init__(self) -> None:
        self.lines: list[tuple[int, list[Draft | Refusal] | Problem]] = []
        self.channels: set[str] = set()  # of an ordered stream
        self.size = 0  # items, and lines without any


def _may_pass(result: Receipt | dict[str, Any]) -> str | None:
    """The channel of a target whose publish may go through later."""
    if isinstance(result, Receipt) or (result["error"]["status"] < 500 and result["error"]["status"] != 429):
        return None
    channel: str = result["channel"]
    return channel


def _all(lines: Lines, chunk: bytes, more: bool) -> Iterator[tuple[int, bytes | None]]:
    yield from lines.feed(chunk)
    if not more:
        yield from lines.end()
