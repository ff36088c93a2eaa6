"""A subscriber that is told to go opens the next connection beside the old one. Links are scripted, time is real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import ClassVar

import httpx
import msgspec
import pytest

from gateway.client import Event, Message, Subscriber
from gateway.client.frames import Frame, Goodbye, Position, Welcome
from gateway.client.links import Opening
from gateway.client.reconnect import Ended
from gateway.message import decode_cursor

CHANNEL = "topic:a"
WITHIN = 10.0  # seconds


class ScriptedLink:
    """A test puts in what comes; `gate` holds back its opening."""

    name: ClassVar[str] = "ws"
    silence: float | None = None
    all: ClassVar[list[ScriptedLink]]
    made: ClassVar[asyncio.Condition]

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.at = ""
        self.incoming: asyncio.Queue[Frame | Ended] = asyncio.Queue()
        self.opening: Opening | None = None
        self._closed = False

    async def open(self, opening: Opening) -> None:
        self.at, self.opening = opening.url, opening
        self.all.append(self)
        async with self.made:
            self.made.notify_all()

    async def receive(self) -> Iterable[Frame]:
        found = await self.incoming.get()
        if isinstance(found, Ended):
            raise found
        return (found,)

    async def close(self) -> None:
        self._closed = True

    def closed(self) -> bool:
        return self._closed

    def send(self, *frames: Frame | Ended) -> None:
        for frame in frames:
            self.incoming.put_nowait(frame)

    @property
    def presented(self) -> int:
        assert self.opening is not None
        assert self.opening.cursor is not None
        return decode_cursor(self.opening.cursor, 1000)[CHANNEL]


class Reader:
    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.seen: list[int] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.subscriber:
            self._note(event)

    def _note(self, event: Event) -> None:
        assert isinstance(event, Message)
        self.seen.append(event.offset)
        self._news.set()

    async def until(self, *offsets: int) -> None:
        async with asyncio.timeout(WITHIN):
            while self.seen != list(offsets):
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def reader(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reader]:
    """One that has been connected for longer than a second, has seen message 11, and was told to go."""
    ScriptedLink.all, ScriptedLink.made = [], asyncio.Condition()
    subscriber = Subscriber("http://gateway.example", "token", [CHANNEL], transport="ws")
    monkeypatch.setattr(subscriber, "_links", [ScriptedLink])
    monkeypatch.setattr(type(subscriber._reconnect), "settled", True)
    reader = Reader(subscriber)
    first = await link(1)
    first.send(welcome(10), message(11))
    await reader.until(11)
    first.send(Goodbye(code=4100, after_ms=0))
    yield reader
    reader.task.cancel()
    await asyncio.gather(reader.task, return_exceptions=True)
    await subscriber.aclose()
    assert all(link.closed() for link in ScriptedLink.all)


async def link(number: int) -> ScriptedLink:
    """The first, second ... that was opened."""
    async with asyncio.timeout(WITHIN), ScriptedLink.made:
        await ScriptedLink.made.wait_for(lambda: len(ScriptedLink.all) >= number)
    return ScriptedLink.all[number - 1]


def welcome(offset: int) -> Welcome:
    return Welcome(channels=[Position(CHANNEL, offset, recovered=True)])


def message(offset: int) -> Message:
    return Message(CHANNEL, offset, f"m{offset}", "test", msgspec.Raw(b"1"), datetime.now(UTC))


async def test_the_old_one_goes_on_until_the_new_one_has_let_us_in(reader: Reader) -> None:
    old, new = ScriptedLink.all[0], await link(2)
    assert new.presented == 11
    old.send(message(12), message(13))
    await reader.until(11, 12, 13)
    assert not old.closed()
    new.send(welcome(11), message(12), message(13), message(14))
    await reader.until(11, 12, 13, 14)
    assert old.closed()
    assert not new.closed()


async def test_one_that_does_not_let_us_in_is_tried_again_while_the_old_one_goes_on(reader: Reader) -> None:
    old, refused = ScriptedLink.all[0], await link(2)
    refused.send(Ended("draining", code=4100))
    old.send(message(12))
    await reader.until(11, 12)
    new = await link(3)
    assert refused.closed()
    assert new.presented == 12
    old.send(message(13))
    await reader.until(11, 12, 13)
    new.send(welcome(12), message(13), message(14))
    await reader.until(11, 12, 13, 14)
    assert old.closed()


async def test_where_the_old_one_ends_first_the_new_one_is_waited_for(reader: Reader) -> None:
    old, new = ScriptedLink.all[0], await link(2)
    old.send(message(12), Ended("closed", code=4100))
    await reader.until(11, 12)
    new.send(welcome(11), message(12), message(13))
    await reader.until(11, 12, 13)
    assert len(ScriptedLink.all) == 2


async def test_where_both_end_it_comes_back_as_ever(reader: Reader) -> None:
    old, refused = ScriptedLink.all[0], await link(2)
    old.send(Ended("closed", code=4100))
    refused.send(Ended("draining", code=4100))
    new = await link(3)
    new.send(welcome(11), message(12))
    await reader.until(11, 12)


async def test_leaving_meanwhile_closes_both(reader: Reader) -> None:
    await link(2)  # what is checked comes when the fixture ends
