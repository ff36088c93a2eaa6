"""One canary's connections: how long each took, how it ended, and what came on it in which order. No I/O."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.client.frames import Checkpoint, Error, Frame, Goodbye, Message, Reset, Subscribed, Welcome
from gateway.client.reconnect import Ended
from gateway.message import decode_cursor

MAX_CURSOR = 4 << 10  # bytes; a canary has one channel


@dataclass(slots=True)
class Tally:
    """What all canaries of one transport have in common."""

    transport: str
    canaries: int = 0
    connected: int = 0
    deliveries: int = 0
    duplicated: int = 0
    reordered: int = 0
    repeated: int = 0  # above the cursor that was presented, so as promised, and seen before on another connection
    resets: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # attempts that did not get through, by reason
    goodbyes: int = 0  # connections that ended and had been told so
    broken: Counter[str] = field(default_factory=Counter)  # that had not, by reason
    resumes: list[float] = field(default_factory=list)  # seconds from the attempt to the first frame, of who came back
    away: list[float] = field(default_factory=list)  # seconds without a connection, each time that one followed another
    arrivals: list[tuple[float, str]] = field(default_factory=list)  # of who came back: when, and at which node


class _Stretch:
    """One connection: the position that the next message has to be above, once it is known."""

    __slots__ = ("began", "node", "open", "position", "told")

    def __init__(self, position: int | None, began: float) -> None:
        self.position = position
        self.began = began
        self.open = False
        self.told = False
        self.node: str | None = None


class Track:
    """A `gateway.client.watch.Watch` of one canary and its `channel`."""

    def __init__(
        self, tally: Tally, channel: str, began: Callable[[int], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`began` is called once, with the position from which on everything is owed."""
        self.tally = tally
        self.channel = channel
        self.open: dict[object, _Stretch] = {}  # by link
        self._began = began
        self._clock = clock
        self._owed = False
        self._came = False  # has been connected before
        self._node: str | None = None  # where it was last
        self._alone_since: float | None = None
        self._seen: set[int] = set()

    @property
    def connected(self) -> bool:
        return any(stretch.open for stretch in self.open.values())

    def opening(self, link: object, cursor: str | None) -> None:
        position = None if cursor is None else decode_cursor(cursor, MAX_CURSOR).get(self.channel)
        self.open[link] = _Stretch(position, self._clock())

    def frame(self, link: object, frame: Frame) -> None:
        stretch = self.open[link]
        if isinstance(frame, Goodbye):
            stretch.told = True
            return
        if isinstance(frame, Error):
            return
        if not stretch.open:
            self._opened(stretch)
        if isinstance(frame, Message):
            self._message(stretch, frame)
        elif isinstance(frame, Reset):
            if frame.channel == self.channel:
                stretch.position = frame.offset
                self.tally.resets += 1
        elif isinstance(frame, Welcome):
            if frame.node is not None and frame.node != stretch.node:
                self._arrived(stretch, frame.node)
            for at in frame.channels:
                self._placed(stretch, at.channel, at.offset)
        elif isinstance(frame, Subscribed):
            self._placed(stretch, frame.channel, frame.offset)
        elif isinstance(frame, Checkpoint) and stretch.position is None:
            for channel, offset in decode_cursor(frame.cursor, MAX_CURSOR).items():
                self._placed(stretch, channel, offset)

    def ended(self, link: object, end: Ended | None) -> None:
        stretch = self.open.pop(link)
        if not stretch.open:
            self.tally.failed[_reason(end)] += 1
            return
        told = stretch.told or end is None or end.planned or end.code is not None
        if told:
            self.tally.goodbyes += 1
        else:
            self.tally.broken[_reason(end)] += 1
        if not self.connected:
            self.tally.connected -= 1
            self._alone_since = self._clock()

    def _opened(self, stretch: _Stretch) -> None:
        now = self._clock()
        if not self.connected:
            self.tally.connected += 1
        stretch.open = True
        if self._came:
            self.tally.resumes.append(now - stretch.began)
            self.tally.away.append(0.0 if self._alone_since is None else now - self._alone_since)
        self._came, self._alone_since = True, None

    def _arrived(self, stretch: _Stretch, node: str) -> None:
        """A welcome of a new connection; or of a poll that another node than before has answered."""
        if self._node is not None:
            self.tally.arrivals.append((self._clock(), node))
        self._node = stretch.node = node

    def _placed(self, stretch: _Stretch, channel: str, offset: int) -> None:
        if channel != self.channel or stretch.position is not None:
            return
        stretch.position = offset
        if not self._owed:
            self._owed = True
            self._began(offset)

    def _message(self, stretch: _Stretch, message: Message) -> None:
        if message.channel != self.channel:
            return
        self._placed(stretch, message.channel, message.offset - 1)
        if stretch.position is not None and message.offset <= stretch.position:
            if message.offset in self._seen:
                self.tally.duplicated += 1
            else:
                self.tally.reordered += 1
        else:
            stretch.position = message.offset
            if message.offset in self._seen:
                self.tally.repeated += 1
        self._seen.add(message.offset)


def _reason(end: Ended | None) -> str:
    if end is None:
        return "given up"
    return f"{end.code}: {end.reason}" if end.code is not None else end.reason
