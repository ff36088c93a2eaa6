"""Being told of every connection that a subscriber makes, and of each frame as it came: for diagnosis."""

from __future__ import annotations

from typing import Protocol

from gateway.client.frames import Frame
from gateway.client.reconnect import Ended


class Watch(Protocol):
    """Its calls are plain and quick; they come from the task that iterates. Two links may be there at a time, and all
    that is to be known of one is which it is."""

    def opening(self, link: object, cursor: str | None) -> None:
        """A connection is tried, at the positions of `cursor`. It is open from its first frame on, but for a goodbye or
        an error."""

    def frame(self, link: object, frame: Frame) -> None:
        """A frame, before what was seen already is left out. Of polls, what one was answered with."""

    def ended(self, link: object, end: Ended | None) -> None:
        """It is over; without an `end` because the subscriber has left it."""


class Unwatched:
    def opening(self, link: object, cursor: str | None) -> None: ...
    def frame(self, link: object, frame: Frame) -> None: ...
    def ended(self, link: object, end: Ended | None) -> None: ...
