"""RQ's workers and application in these tests.

    python -m tests.integrations.apps.rq_app [Worker|SpawnWorker|SimpleWorker]
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, ClassVar

from redis import Redis
from rq import Queue, Retry
from rq.command import send_stop_job_command

import publisher.rq
from publisher.jobs import JobReporter
from publisher.tasks import UserOf
from tests.integrations.apps import work

USER = "it"


def by_argument(name: str, args: Any, kwargs: Any) -> str | None:
    return USER if "by_argument" in args else None


reporter = work.reporter()


class Ours:
    """What the application says of jobs, and that one is abandoned when it is silent for three seconds, not ninety."""

    reporter: ClassVar[JobReporter | None] = reporter
    user: ClassVar[UserOf | None] = staticmethod(by_argument)

    def get_heartbeat_ttl(self, job: Any, working_time: float = 0.0) -> int:
        return 3


class Worker(Ours, publisher.rq.Worker):
    pass


class SpawnWorker(Ours, publisher.rq.SpawnWorker):
    pass


class SimpleWorker(Ours, publisher.rq.SimpleWorker):
    pass


class Unreadable:
    """An argument that whoever sends it has, and its worker does not."""

    def __reduce__(self) -> tuple[Any, ...]:
        return work.broken, ()


TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "by_argument": ("ignore", {}),
    "flaky": ("flaky", {"retry": Retry(max=4)}),
    "hopeless": ("hopeless", {"retry": Retry(max=1)}),
    "limited": ("slow", {"job_timeout": 1}),
    "nobody knows": ("nobody_knows", {}),
    "unreadable": ("ignore", {}),
    "again": ("slow", {"retry": Retry(max=1)}),
}
queue = Queue(connection=Redis.from_url(work.REDIS))


def send(name: str, args: list[Any], options: dict[str, Any]) -> str:
    function, more = TASKS.get(name, (name, {}))
    meta = {"ringcast_user": USER} if name != "by_argument" else {}
    args = [Unreadable()] if name == "unreadable" else args
    job = queue.enqueue(f"tests.integrations.apps.work.{function}", args=args, meta=meta, **more)
    reporter.job(job.id, user=USER, name=name).queued()
    return str(job.id)


def abort(id: str) -> None:
    send_stop_job_command(queue.connection, id)


if __name__ == "__main__":
    # By its module's own name, which the processes that it spawns can import. And it looks for what is abandoned every
    # second, and reports as often that its job is not.
    queue.release_maintenance_lock()  # which a worker that was killed while it looked holds for a quarter of an hour
    kind = getattr(importlib.import_module("tests.integrations.apps.rq_app"), *sys.argv[1:] or ["Worker"])
    kind([queue], connection=queue.connection, maintenance_interval=1, job_monitoring_interval=1, worker_ttl=16).work()
