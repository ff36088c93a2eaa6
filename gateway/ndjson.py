"""Lines out of a stream of chunks, within a bound; no I/O."""

from __future__ import annotations

from collections.abc import Iterator

CONTENT_TYPE = "application/x-ndjson"


class Lines:
    """Cuts chunks into numbered lines. Holds at most `limit` bytes of the line that is not complete yet."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.number = 0  # of the last line begun, from 1
        self._held = bytearray()
        self._overlong = False  # the line at hand was told already; its rest is thrown away

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The lines this chunk completes with their numbers; None for one above the limit. Blank ones only count."""
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield from self._add(piece)
            yield from self.end()
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
