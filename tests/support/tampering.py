"""A proxy that spoils one message on its way to a subscriber, in the ways that must never happen unseen."""

from __future__ import annotations

import asyncio
from typing import Literal

from tests.support.proxy import Proxy

Spoils = Literal["nothing", "drops", "repeats", "swaps"]


class Tampering(Proxy):
    """Does so with the third message of the first WebSocket; the frames are those of RFC 6455, 5.2, unmasked."""

    def __init__(self, port: int, spoils: Spoils) -> None:
        super().__init__(port)
        self.spoils: Spoils = spoils
        self._messages = 0

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, held_back: bool = False) -> None:
        begin = await source.read(12)
        sink.write(begin)
        if begin != b"HTTP/1.1 101" or self._messages:
            await super()._pump(source, sink, held_back)
            return
        self._messages = 1
        sink.write(await source.readuntil(b"\r\n\r\n"))
        kept = b""
        while frame := await _frame(source):
            if b'"type":"message"' not in frame:
                sink.write(frame)
                continue
            third = self._messages == 3
            self._messages += 1
            if third and self.spoils in ("drops", "swaps"):
                kept = frame if self.spoils == "swaps" else b""
                continue
            sink.write(frame + (frame if third and self.spoils == "repeats" else b"") + kept)
            kept = b""


async def _frame(source: asyncio.StreamReader) -> bytes:
    """A whole frame; nothing at the end."""
    try:
        head = await source.readexactly(2)
        more = {126: 2, 127: 8}.get(head[1], 0)
        length = await source.readexactly(more)
        return head + length + await source.readexactly(int.from_bytes(length) if more else head[1])
    except asyncio.IncompleteReadError:
        return b""
