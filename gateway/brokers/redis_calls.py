"""Scripts and views of the store: one round trip each, a bound on every answer, one word for a store that is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from gateway.brokers import redis_store as store
from gateway.brokers.cancelled import raise_if_cancelled
from gateway.brokers.redis_servers import Servers
from gateway.errors import Problem

log = logging.getLogger("ringcast.redis")

WITHIN = 2.0  # seconds for any answer of the store; then it counts as away
AGAIN = 0.05  # seconds before a slot that moves is looked for again
AWAY = (RedisError, RedisClusterException, OSError, TimeoutError)  # the second is no RedisError

Call = tuple[store.Script, list[bytes], list[Any]]  # a script, its KEYS and its ARGV


class Calls:
    """`on_replica` is told where a server that is asked to write has become a replica.

    It goes on answering, and ends no connection by itself: whoever stays with it publishes nothing any more.
    """

    def __init__(self, servers: Servers, on_replica: Callable[[], None]) -> None:
        self._servers = servers
        self._client: Any = servers.client
        self._on_replica = on_replica

    async def run(self, calls: Iterable[Call]) -> list[Any]:
        """Run scripts in one round trip for each server. An answer may be an exception; raises one of AWAY."""
        calls = list(calls)
        async with asyncio.timeout(WITHIN):
            answers = await self._pipeline(calls)
            again = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if again:  # another server process, which learns them by this; those it does not concern are not waited for
                told = await self._pipeline([calls[number] for number in again], whole=True)
                for number, answer in zip(again, told, strict=True):
                    answers[number] = answer
        return answers

    async def one(self, call: Call) -> Any:
        """What a script answers. Raises one of AWAY."""
        answer = (await self.run([call]))[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _pipeline(self, calls: list[Call], *, whole: bool = False) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        verb = "EVAL" if whole else "EVALSHA"
        for script, keys, arguments in calls:
            pipeline.execute_command(verb, script.text if whole else script.sha, len(keys), *keys, *arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        raise_if_cancelled()
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            self._on_replica()
        return answers

    async def load(self) -> None:
        """Tell the servers the scripts."""
        async with asyncio.timeout(WITHIN):
            for script in (store.PUBLISH, store.CHECK):
                await self._client.script_load(script.text)

    async def view(self, ask: Callable[[Any], None], part: bytes, slot: int) -> list[Any]:
        """One atomic view, whose second answer is a partition's PART_FIELDS. Raises Problem `unavailable`.

        A partition that is not there begins, and is looked at again: others may have published to it in between.
        """
        try:
            async with asyncio.timeout(2 * WITHIN):
                while True:
                    pipeline: Any = (await self._servers.master(slot)).pipeline(transaction=True)
                    ask(pipeline)
                    try:
                        answers: list[Any] = await pipeline.execute()
                        raise_if_cancelled()
                    except (MovedError, AskError):  # the slot is on its way to another server
                        await self._servers.refresh()
                        await asyncio.sleep(AGAIN)
                        continue
                    if answers[1][1] is not None:
                        return answers
                    await self.one((store.CHECK, [part], []))
        except AWAY as error:
            raise away(error) from error


def away(error: BaseException) -> Problem:
    """What a caller is told of a store that is away."""
    raise_if_cancelled()
    why = str(error) if isinstance(error, ResponseError) else type(error).__name__
    log.warning("the store is away: %s: %s", type(error).__name__, error)
    return Problem("unavailable", f"The store does not answer ({why}): try again soon", retry_after=1)


def refusal(error: BaseException | None) -> str | None:
    """Why the server does not let us in, where that is what an error says, or what caused it."""
    while error is not None:
        if isinstance(error, AuthenticationError | NoPermissionError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None
