"""The breaker: who finds out waits, those after are told at once, and an answer ends it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.brokers import breaker as module
from gateway.brokers.breaker import Breaker, Breakers
from gateway.errors import Problem


class Store:
    """Answers when told to; counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails: Exception | None = ConnectionError("away")
        self.was_asked = asyncio.Event()

    async def ask(self, number: int = 0) -> None:
        self.asked += 1
        self.was_asked.set()
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails


AWAY = Problem("unavailable", "the store does not answer", retry_after=2)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)


async def closed(breaker: Breaker) -> None:
    async with asyncio.timeout(5):
        while breaker.is_open:  # noqa: ASYNC110 - it is a property, as publishers ask it
            await asyncio.sleep(0.001)


async def test_it_refuses_at_once_until_a_question_is_answered() -> None:
    store = Store()
    breaker = Breaker("it", store.ask, (ConnectionError,))
    breaker.pass_through()
    breaker.trip(AWAY)
    for _ in range(1000):
        with pytest.raises(Problem) as refused:
            breaker.pass_through()
    assert (refused.value.code, refused.value.retry_after, refused.value.detail) == ("unavailable", 2, AWAY.detail)
    while store.asked < 3:
        store.was_asked.clear()
        await store.was_asked.wait()
    assert breaker.is_open
    store.fails = None
    await closed(breaker)
    breaker.pass_through()


async def test_many_who_find_out_at_once_ask_one_question() -> None:
    store = Store()
    breaker = Breaker("it", store.ask, (ConnectionError,))
    for _ in range(100):
        breaker.trip(AWAY)
    await store.was_asked.wait()
    assert store.asked == 1
    await breaker.close()


async def test_a_question_that_fails_in_another_way_is_logged_and_closes_it(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.fails = RuntimeError("a fault")
    breaker = Breaker("it", store.ask, (ConnectionError,))
    with caplog.at_level(logging.ERROR, "ringcast.breaker"):
        breaker.trip(AWAY)
        await closed(breaker)
    assert "a fault" in caplog.text


async def test_one_stream_that_is_away_refuses_nothing_for_the_others() -> None:
    store = Store()
    breakers = Breakers(str, store.ask, (ConnectionError,))
    breakers.of(1).trip(AWAY)
    breakers.of(2).pass_through()
    with pytest.raises(Problem):
        breakers.of(1).pass_through()
    await breakers.close()
    assert not breakers.of(1).is_open
