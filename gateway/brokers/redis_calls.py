"""Scripts and views of the store: one round trip each, a bound on every answer, one word for a store that is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.brokers import redis_store as store
from gateway.errors import Problem

log = logging.getLogger("ringcast.redis")

WITHIN = 2.0  # seconds for any answer of the store; then it counts as away
AWAY = (RedisError, OSError, TimeoutError)

Call = tuple[store.Script, list[bytes], list[Any]]  # a script, its KEYS and its ARGV


class Calls:
    def __init__(self, client: Redis | RedisCluster) -> None:
        self._client: Any = client

    async def run(self, calls: Iterable[Call]) -> list[Any]:
        """Run scripts in one round trip for each server. An answer may be an exception; raises one of AWAY."""
        calls = list(calls)
        async with asyncio.timeout(WITHIN):
            answers = await self._pipeline(calls)
            again = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if again:  # another server process, which has not seen them yet
                await self.load()
                for number, answer in zip(again, await self._pipeline([calls[n] for n in again]), strict=True):
                    answers[number] = answer
        return answers

    async def _pipeline(self, calls: list[Call]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for script, keys, arguments in calls:
            pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def load(self) -> None:
        """Tell the servers the scripts."""
        async with asyncio.timeout(WITHIN):
            for script in (store.PUBLISH, store.CHECK):
                await self._client.script_load(script.text)

    async def view(self, pipeline: Any, part: bytes) -> list[Any]:
        """One atomic view, whose second answer is a partition's floor, top and history; one that is not there begins.

        Raises Problem `unavailable`.
        """
        try:
            async with asyncio.timeout(2 * WITHIN):
                answers: list[Any] = await pipeline.execute()
                if answers[1][1] is None:
                    begun = (await self.run([(store.CHECK, [part], [])]))[0]
                    if isinstance(begun, Exception):
                        raise begun
                    answers[1] = [begun[0], begun[0], begun[1]]
        except AWAY as error:
            raise away(error) from error
        return answers


def away(error: BaseException) -> Problem:
    """What a caller is told of a store that is away."""
    why = str(error) if isinstance(error, ResponseError) else type(error).__name__
    log.warning("the store is away: %s: %s", type(error).__name__, error)
    return Problem("unavailable", f"The store does not answer ({why}): try again soon", retry_after=1)
