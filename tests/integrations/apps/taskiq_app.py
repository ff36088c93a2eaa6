"""taskiq's worker and application in these tests."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import SmartRetryMiddleware
from taskiq.kicker import AsyncKicker
from taskiq_redis import RedisStreamBroker

from publisher.jobs import current
from publisher.taskiq import JobMiddleware
from tests.integrations.apps import work

USER = "it"
jobs = JobMiddleware(work.reporter(), user=lambda task, args, kwargs: USER if "by_argument" in args else None)
retries = SmartRetryMiddleware(default_retry_count=1, default_delay=0.3)
broker = RedisStreamBroker(work.REDIS, idle_timeout=4000, xread_block=200, consumer_id="0")
broker.add_middlewares(retries, jobs)

broker.register_task(work.succeed, "succeed")
broker.register_task(work.ignore, "by_argument")
broker.register_task(work.progress, "progress")
broker.register_task(work.flaky, "flaky", retry_on_error=True, max_retries=5)
broker.register_task(work.hopeless, "hopeless", retry_on_error=True, max_retries=2)
broker.register_task(work.broken, "broken")
broker.register_task(work.measured, "measured")
broker.register_task(work.slow, "slow")
broker.register_task(work.suicide, "suicide")


@broker.task("awaited")  # type: ignore[untyped-decorator]  # taskiq is in an environment of its own
async def awaited() -> None:
    for n in range(3):
        await asyncio.sleep(0.1)
        current().progress(n + 1, 3)


@broker.task("limited", timeout=0.5)  # type: ignore[untyped-decorator]
async def limited() -> None:
    await asyncio.sleep(20)


loop = asyncio.new_event_loop()  # the application's


def send(name: str, args: list[Any], options: dict[str, Any]) -> str:
    labels = {"ringcast_user": USER} if name != "by_argument" else {}
    task = broker.find_task(name)
    kicker = AsyncKicker(name, broker, {}) if task is None else task.kicker()
    return str(loop.run_until_complete(kicker.with_labels(**labels).kiq(*args)).task_id)


def abort(id: str) -> None:
    raise NotImplementedError("taskiq has no such thing")
