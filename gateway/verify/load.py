"""Publishes at a steady rate, each message with an id and tried until it is acknowledged, into a ledger."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from gateway.verify.ledger import Ledger
from publisher import AsyncPublisher, Retry, Unavailable

UNDER_WAY = 90  # publishes of one publisher at a time; its connections are 100
RETRY = Retry(deadline=90.0, timeout=3.0, base=0.1, cap=1.0)
LATE = 10.0  # seconds after the deadline of the last publish in which it has to have ended


def no_key(channel: str, number: int) -> str | None:
    return None


class Load:
    """Publishes at `rate` a second, to channels drawn at random, so that some meet, and through `urls` in turn."""

    def __init__(
        self, ledger: Ledger, urls: Sequence[str], api_key: str | None, channels: Sequence[str], rate: float, *,
        run: str = "", key: Callable[[str, int], str | None] = no_key, retry: Retry = RETRY, every: float = 0.0,
    ) -> None:  # fmt: skip
        """`run` begins every id; `key` gives a message's key from its channel and number.

        Requests go out `every` so many seconds and carry what is due; by default each carries one message.
        """
        self.ledger = ledger
        self.channels = channels
        self.rate = rate
        self.given_up = 0
        self._urls = urls
        self._api_key = api_key
        self._run = run
        self._key = key
        self._retry = retry
        self._batch = max(1, int(rate * every))
        self._random = random.Random(1)  # noqa: S311 - hides nothing
        self._numbers = itertools.count()

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until told to stop; returns when the last is acknowledged or given up.

        Raises ExceptionGroup of publisher.Refused where a gateway refuses, and ValueError for a URL that is none.
        """
        loop = asyncio.get_running_loop()
        count = max(len(self._urls), 1 + int(self.rate // 50))
        publishers = [
            AsyncPublisher(url, self._api_key, retry=self._retry)
            for url in itertools.islice(itertools.cycle(self._urls), count)
        ]  # fmt: skip
        room = asyncio.Semaphore(UNDER_WAY * len(publishers))
        due = loop.time()
        try:
            async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as tasks:
                for publisher in itertools.cycle(publishers):
                    if stop.is_set():
                        break
                    async with asyncio.timeout(self._retry.deadline + LATE):
                        await room.acquire()
                    task = tasks.create_task(self._publish(publisher))
                    task.add_done_callback(lambda _: room.release())
                    # What could not be sent in time is not made up for.
                    due = max(due + self._batch / self.rate, loop.time() - 1)
                    await asyncio.sleep(due - loop.time())
                limit.reschedule(loop.time() + self._retry.deadline + LATE)
        finally:
            for publisher in publishers:
                await publisher.aclose()

    async def _publish(self, publisher: AsyncPublisher) -> None:
        messages = [self._next() for _ in range(self._batch)]
        for message in messages:
            self.ledger.trying(message["channel"], message["id"])
        async for outcome in publisher.publish_many(messages):
            if isinstance(outcome.error, Unavailable):
                self.given_up += 1
            elif outcome.error is not None:
                raise outcome.error
            else:
                receipt = outcome.receipt
                self.ledger.was_acknowledged(receipt.channel, receipt.offset, receipt.id, time.monotonic())

    def _next(self) -> dict[str, Any]:
        number = next(self._numbers)
        channel = self._random.choice(self.channels)
        fields = {"id": f"{self._run}{channel}-{number}", "key": self._key(channel, number)}
        return {"channel": channel, "data": {"number": number}, "event": "verify", **fields}
