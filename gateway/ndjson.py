"""Publishing a line at a time: each line is one publish and is answered by one line, in constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.types import Message, Receive

from gateway.errors import Problem
from gateway.http import NDJSON, Stream, encode
from gateway.identity import Identity
from gateway.node import Node
from gateway.publish import body_limit, parse
from gateway.results import check_unexpired, publish_each

PIECE = 16 << 10  # bytes of answers that are sent together at least, while there are lines to go on with
TURN = 50  # lines after which others have their turn
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
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            yield from self._add(chunk[start:end])
            yield from self.end()
            start = end + 1
        yield from self._add(chunk[start:])

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
    """Answers each line while the next ones arrive; a client has to read while it writes."""

    def __init__(self, node: Node, identity: Identity) -> None:
        super().__init__(node.settings.stuck_after, NDJSON)
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
            for number, line in _all(lines, event.get("body", b""), more):
                answers += encode({"line": number, **await self._publish(line)}) + b"\n"
                if number % TURN == 0:
                    await asyncio.sleep(0)
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
                if self._node.draining:
                    return None

    async def _publish(self, line: bytes | None) -> dict[str, Any]:
        """What the answer says beside the number."""
        try:
            check_unexpired(self._identity)
            if line is None:
                limit = body_limit(self._settings)
                raise Problem("too_large", f"The line has more than the {limit} bytes that are taken", limit=limit)
            items = parse(line, self._settings, self._identity.principal)
        except Problem as problem:
            return {"error": problem.as_json()}
        return {"results": await publish_each(self._node, self._identity, items)}


def _all(lines: Lines, chunk: bytes, more: bool) -> Iterator[tuple[int, bytes | None]]:
    yield from lines.feed(chunk)
    if not more:
        yield from lines.end()
