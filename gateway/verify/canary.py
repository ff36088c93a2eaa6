"""A canary: one client of one channel over one transport, whose application writes what it sees into the ledger."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from gateway.client import Event, Message, Reset
from gateway.verify.ledger import Ledger
from gateway.verify.track import Tally, Track


class Follow(Protocol):
    def __call__(self, track: Track) -> AsyncGenerator[Event]:
        """What the application sees, for as long as it is asked."""


class Canary:
    def __init__(self, name: str, channel: str, run: str, tally: Tally, ledger: Ledger, follow: Follow) -> None:
        """`run` is what the ids of the messages begin with that are its own affair."""
        self.name = name
        self.joined = False  # has its first position, from which on it is owed everything
        self.channel = channel
        self._run = run
        self._tally = tally
        self._ledger = ledger
        self._follow = follow

    async def live(self) -> None:
        """Follow the channel until cancelled; one that gives up is a fault."""
        try:
            async with aclosing(self._follow(Track(self._tally, self.channel, self._began))) as events:
                async for event in events:
                    if isinstance(event, Message):
                        self._saw(event)
                    elif isinstance(event, Reset) and self.joined:
                        self._ledger.was_reset(self.name, event.channel, event.offset, event.reason, time.monotonic())
        except Exception as error:  # whatever it was: a client that ends is one of the things that are looked for
            self._ledger.ended(self.name, f"{type(error).__name__}: {error}")

    def _began(self, offset: int) -> None:
        self._ledger.began(self.name, self.channel, offset)
        self.joined = True

    def _saw(self, message: Message) -> None:
        if message.id.startswith(self._run):
            self._tally.deliveries += 1
            self._ledger.saw(self.name, message.channel, message.offset, message.id, time.monotonic())
