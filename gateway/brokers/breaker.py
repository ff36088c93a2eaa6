"""A breaker: once the store did not answer, nobody waits for it again until a question of its own was answered."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial

from gateway.errors import Problem

log = logging.getLogger("ringcast.breaker")

EVERY = 0.5  # seconds between two questions at most, each of which has its own bound


class Breaker:
    """For one server or stream: `ask` asks it something small, and raises while it does not answer.

    The publisher that finds out has waited as long as a publish may; those after it are told at once. No publish is
    given up to find out whether the store is back: it may be lost.
    """

    def __init__(self, name: str, ask: Callable[[], Awaitable[object]], away: tuple[type[Exception], ...]) -> None:
        self._name = name
        self._ask = ask
        self._away = away  # what `ask` raises while there is no answer
        self._problem: Problem | None = None
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._problem is not None

    def pass_through(self) -> None:
        """Raises Problem `unavailable` while the breaker is open."""
        if self._problem is not None:
            raise Problem("unavailable", self._problem.detail, retry_after=self._problem.retry_after)

    def trip(self, problem: Problem) -> None:
        """The store did not answer: refuse with this problem until it does."""
        if self._problem is None:
            self._problem = problem
            self._asking = asyncio.create_task(self._until_answered(), name=f"breaker of {self._name}")
            self._asking.add_done_callback(self._ended)
            log.warning("%s does not answer: publishes are refused until it does", self._name)

    async def _until_answered(self) -> None:
        while True:
            try:
                await self._ask()
                return
            except self._away:
                await asyncio.sleep(EVERY * random.uniform(0.5, 1))  # noqa: S311 - not all nodes at once

    def _ended(self, asking: asyncio.Task[None]) -> None:
        """Also where asking failed in a way that nobody thought of: then the next publisher finds out."""
        self._problem = self._asking = None
        if asking.cancelled():
            return
        if asking.exception() is None:
            log.info("%s answers again", self._name)
        else:
            log.error("whether %s answers cannot be asked", self._name, exc_info=asking.exception())

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)


class Breakers:
    """One for each stream that is published to."""

    def __init__(
        self, name: Callable[[int], str], ask: Callable[[int], Awaitable[object]], away: tuple[type[Exception], ...]
    ) -> None:
        self._name, self._ask, self._away = name, ask, away
        self._breakers: dict[int, Breaker] = {}

    def of(self, number: int) -> Breaker:
        breaker = self._breakers.get(number)
        if breaker is None:
            breaker = Breaker(self._name(number), partial(self._ask, number), self._away)
            self._breakers[number] = breaker
        return breaker

    async def close(self) -> None:
        for breaker in self._breakers.values():
            await breaker.close()
