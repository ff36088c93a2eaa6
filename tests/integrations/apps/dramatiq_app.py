"""Dramatiq's worker and application in these tests."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, Retries, ShutdownNotifications, TimeLimit

from publisher.dramatiq import JobMiddleware
from tests.integrations.apps import work

USER = "it"
middleware = [AgeLimit(), TimeLimit(interval=100), ShutdownNotifications(), Retries(min_backoff=500, max_backoff=500)]
broker = RedisBroker(url=work.REDIS, middleware=middleware, heartbeat_timeout=4000, maintenance_chance=500_000)
broker.add_middleware(JobMiddleware(
    work.reporter(), user=lambda actor, args, kwargs: USER if "by_argument" in args else None
))  # fmt: skip
dramatiq.set_broker(broker)

dramatiq.actor(actor_name="succeed")(work.succeed)
dramatiq.actor(actor_name="by_argument")(work.ignore)
dramatiq.actor(actor_name="progress")(work.progress)
dramatiq.actor(actor_name="flaky", max_retries=5)(work.flaky)
dramatiq.actor(actor_name="hopeless", max_retries=1)(work.hopeless)
dramatiq.actor(actor_name="broken", throws=ValueError)(work.broken)
dramatiq.actor(actor_name="limited", max_retries=0, time_limit=500)(work.slow)
dramatiq.actor(actor_name="measured")(work.measured)
dramatiq.actor(actor_name="slow")(work.slow)


def send(name: str, args: list[Any], options: dict[str, Any]) -> str:
    more = options | ({"ringcast_user": USER} if name != "by_argument" else {})
    message = dramatiq.Message("default", name, tuple(args), {}, more)
    return str(broker.enqueue(message).message_id)


def abort(id: str) -> None:
    raise NotImplementedError("Dramatiq has no such thing")
