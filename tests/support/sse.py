"""Server-sent events as the WHATWG HTML standard, 9.2.6, has them parsed; bytes in, events out.

Lines end at CR LF, LF or CR and nowhere else: U+2028 belongs to the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a CR at the very end may be half of a CR LF


@dataclass(frozen=True, slots=True)
class Event:
    """One event; a block with an `id` alone has no data, which EventSource would take note of but not show."""

    event: str
    data: str | None
    last_id: str  # the connection's last event id, this block included


class Parser:
    def __init__(self) -> None:
        self.retry: int | None = None  # milliseconds
        self._rest = b""
        self._last_id = ""
        self._event = ""
        self._data: list[str] = []
        self._named = False  # the block has set an id

    def feed(self, chunk: bytes) -> Iterator[Event]:
        lines = _LINE_END.split(self._rest + chunk)
        self._rest = lines.pop()
        for line in lines:
            if line:
                self._field(line.decode())
            else:
                yield from self._dispatch()

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._last_id = value
            self._named = True
        elif name == "retry" and value.isdecimal():
            self.retry = int(value)

    def _dispatch(self) -> Iterator[Event]:
        if self._data or self._named:
            yield Event(self._event or "message", "\n".join(self._data) if self._data else None, self._last_id)
        self._event, self._data, self._named = "", [], False
