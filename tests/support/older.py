"""A node on Redis that publishes and checks as the first release did: `tests/golden/redis-1` keeps its scripts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.brokers import redis_store as store
from gateway.brokers.base import Receipt
from gateway.brokers.redis import RedisBroker
from gateway.brokers.redis_calls import Call
from gateway.message import Draft
from gateway.settings import Settings
from tests.support.deployments import Deployment, Watcher
from tests.support.stored import GOLDEN


class OlderScript(store.Script):
    def __init__(self, name: str) -> None:
        self.text = "".join((GOLDEN / "redis-1" / f"redis_{part}.lua").read_text() for part in ("part", name))
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


PUBLISH, CHECK = OlderScript("publish"), OlderScript("check")


def older_call(call: Call) -> Call:
    """Of each claim it tells an offset and a history, and no age."""
    script, keys, arguments = call
    if script is not store.CHECK:
        return call
    return CHECK, keys, [word for number, word in enumerate(arguments) if number % 3 < 2]


class OlderRedis(RedisBroker):
    """It knows of no policies, indexes and sums of bytes; it ends no keys."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.homes = list
        run = self._calls.run
        self._calls.run = lambda calls: run(map(older_call, calls))  # type: ignore[method-assign]

    async def publish(self, draft: Draft) -> Receipt:
        partition, policy, names = self.partition(draft.channel), self.settings.policy(draft.channel), self.names
        keys = [names.part(partition), names.log(partition, draft.channel)]
        if draft.idempotent:
            keys.append(names.id(partition, draft))
        if draft.key is not None:
            keys.append(names.keys(partition, draft.channel))
        life = policy.key_ttl if draft.ttl is None else draft.ttl
        arguments: list[Any] = [
            draft.channel, names.subject(partition), store.encode_body(draft), int(policy.history_ttl * 1e6),
            policy.history_size, policy.slow, self.chain.history(partition),
            draft.digest().hex() if draft.idempotent else "", 300_000, draft.key or "",
            ",".join(map(str, draft.version or ())), "1" if draft.deleted else "0", int(life * 1000), policy.max_keys,
            "PUBLISH", "",
        ]  # fmt: skip
        client: Any = self._servers.client
        answer = await client.eval(PUBLISH.text, len(keys), *keys, *arguments)
        found = store.receipt(draft, answer)
        assert found is not None, "the server is another one"
        receipt, history = found
        self.chain.acknowledged(partition, receipt.offset, history)
        return receipt


@asynccontextmanager
async def older_node(deployment: Deployment, **changes: Any) -> AsyncIterator[tuple[OlderRedis, Watcher]]:
    broker, watcher = OlderRedis(deployment.settings(**changes)), Watcher()
    running = asyncio.create_task(broker.run(watcher))
    try:
        async with asyncio.timeout(15):
            while not broker.connected:  # noqa: ASYNC110 - it is a property, as /readyz asks it
                await asyncio.sleep(0.01)
        yield broker, watcher
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await broker.close()
