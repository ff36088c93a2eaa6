"""The examples of a Markdown page, as a script: what to send, what must come back, in the order in which they stand.

Fenced blocks are told by their info string:

    http request / http response    one HTTP exchange, with its body
    http websocket                  the handshake that opens the section's WebSocket
    json ws-client / json ws-server a frame to send; a frame that must come
    json ws-close                   the close frame that must come
    text event-stream               the next events of the section's SSE stream

A comment `<!-- test: ... -->` tells the test to do something that the page need not show. Every heading begins a new
exchange. An expected value must be equal to the real one, except for those that differ from run to run (offsets, ids,
times, cursors ...): these must be of the same type, a value that the page shows twice must be the same twice, offsets
must be in the page's order, and a request that repeats such a value sends the real one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import parse_headers
from io import BytesIO
from typing import Any

from tests.support.clients import decode_cursor

_FENCE = re.compile(
    r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$|^<!-- test: (?P<told>[^\n]*) -->$|^#+ (?P<title>[^\n]*)$", re.M | re.S
)
SCRIPTED = {
    "http request", "http response", "http websocket", "json ws-client", "json ws-server", "json ws-close",
    "text event-stream",
}  # fmt: skip
CHANGING = {
    "offset", "id", "time", "session", "ticket", "expires", "partition", "node", "heartbeat_ms", "after_ms",
    "hash", "view", "accept", "release", "top", "connected", "updated", "queued", "started", "ended", "boot",
}  # fmt: skip
REPEATED = {"offset", "id", "ticket", "session"}  # which the page may show again, and requests may repeat
CURSORS = {"cursor", "ringcast-cursor", "etag"}


@dataclass
class Step:
    """One block, or one thing told by a comment (`info` is `test`)."""

    info: str
    text: str
    line: int


@dataclass
class Section:
    title: str
    steps: list[Step] = field(default_factory=list)


def sections(page: str) -> list[Section]:
    """The sections of a page that have something to run; one whose title repeats is told by a number."""
    found = [Section("")]
    for match in _FENCE.finditer(page):
        line = page.count("\n", 0, match.start()) + 1
        if match["title"] is not None:
            found.append(Section(match["title"]))
        elif match["told"] is not None:
            found[-1].steps.append(Step("test", match["told"], line))
        else:
            found[-1].steps.append(Step(match["info"].strip(), match["text"], line))
    return [section for section in found if any(step.info in SCRIPTED for step in section.steps)]


@dataclass
class HTTP:
    """An HTTP message as the page writes it."""

    start: str
    headers: dict[str, str]
    body: str

    @classmethod
    def parse(cls, text: str) -> HTTP:
        head, _, body = text.partition("\n\n")
        start, _, lines = head.partition("\n")
        headers = parse_headers(BytesIO(lines.strip().replace("\n", "\r\n").encode() + b"\r\n\r\n"))
        return cls(start.strip(), dict(headers.items()), body.strip())


class Mismatch(AssertionError):
    pass


class Comparison:
    """Compares what the page shows with what came, and remembers what a shown value stands for."""

    def __init__(self, given: dict[str, str]) -> None:
        self.given = given  # what `<name>` in the page stands for
        self.meant: dict[str, str] = {}  # a shown value: the real one

    def fill(self, text: str) -> str:
        """What is really to be sent where the page says `text`."""
        for shown, real in {**self.given, **self.meant}.items():
            text = text.replace(shown, real)
        return text

    def check(self, shown: Any, real: Any, at: str = "") -> None:
        name = at.rpartition(".")[2].lower()
        if name in CURSORS and isinstance(shown, str):
            self._cursor(shown.strip('"'), real.strip('"'), at)
        elif name in CHANGING:
            self._changing(shown, real, at, name in REPEATED)
        elif isinstance(shown, dict) and isinstance(real, dict):
            if shown.keys() != real.keys():
                raise Mismatch(f"{at or 'it'} has {sorted(real)}, the page shows {sorted(shown)}: {real}")
            for key, value in shown.items():
                self.check(value, real[key], f"{at}.{key}")
        elif isinstance(shown, list) and isinstance(real, list):
            if len(shown) != len(real):
                raise Mismatch(f"{at} has {len(real)} entries, the page shows {len(shown)}: {real}")
            for number, (a, b) in enumerate(zip(shown, real, strict=True)):
                self.check(a, b, f"{at}[{number}]")
        elif isinstance(shown, int) and re.fullmatch(r"\d{16}", str(shown)):
            self._changing(shown, real, at, repeated=True)  # an offset, whatever it is called
        elif shown != real or type(shown) is not type(real):
            raise Mismatch(f"{at or 'it'} is {real!r}, the page shows {shown!r}")

    def _changing(self, shown: Any, real: Any, at: str, repeated: bool) -> None:
        if type(shown) is not type(real):
            raise Mismatch(f"{at} is {real!r}, the page shows {shown!r}")
        if repeated and len(str(shown)) > 3:  # 7 may be anything, 1763712345123456 is meant
            meant = self.meant.setdefault(str(shown), str(real))
            if meant != str(real):
                raise Mismatch(f"{at} is {real!r}; where the page showed {shown!r} before, it was {meant!r}")

    def _cursor(self, shown: str, real: str, at: str) -> None:
        expected, found = decode_cursor(shown), decode_cursor(real)
        if expected.keys() != found.keys():
            raise Mismatch(f"{at} holds {sorted(found)}, the page shows {sorted(expected)}")
        for channel, offset in expected.items():
            self._changing(offset, found[channel], f"{at}.{channel}.offset", repeated=True)
        self.meant[shown] = real

    def check_order(self) -> None:
        """Offsets are in the page's order."""
        offsets = sorted((int(a), int(b)) for a, b in self.meant.items() if re.fullmatch(r"\d{16}", a))
        if [real for _, real in offsets] != sorted(real for _, real in offsets):
            raise Mismatch(f"the page's offsets are in another order: {offsets}")


def bodies(text: str) -> Iterator[Any]:
    """The JSON values of a body: one, or one on each line."""
    try:
        yield json.loads(text)
    except ValueError:
        yield from map(json.loads, text.splitlines())
