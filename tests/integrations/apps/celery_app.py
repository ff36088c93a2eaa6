"""Celery's worker and application in these tests, on Redis or on folders."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, chord, group
from celery.exceptions import Ignore, Reject

from publisher.celery import report, whole
from tests.integrations.apps import work

USER = "it"
app = Celery("tests.integrations.apps.celery_app")
if work.REDIS:
    app.conf.broker_url = app.conf.result_backend = work.REDIS
    # Looked for every second, instead of every hundred.
    look = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    app.conf.broker_transport_options = {"visibility_timeout": 8} | look
else:
    folders = {name: str(work.FOLDER / "queue") for name in ("data_folder_in", "data_folder_out")}
    (work.FOLDER / "queue").mkdir(exist_ok=True)
    (work.FOLDER / "results").mkdir(exist_ok=True)
    app.conf.broker_url = "filesystem://localhost"
    # Celery's own lets a worker find messages that are not written yet, which end it.
    app.conf.broker_transport = "client_demo.queue:Transport"
    app.conf.broker_transport_options = folders | {
        "control_folder": str(work.FOLDER / "control"), "polling_interval": 0.05,
    }  # fmt: skip
    app.conf.result_backend = f"file://{work.FOLDER / 'results'}"
app.conf.worker_prefetch_multiplier = 1
app.conf.worker_proc_alive_timeout = 30.0  # for busy machines
app.conf.worker_lost_wait = 1.0  # instead of 10 seconds
app.conf.broker_connection_retry_on_startup = True
report(work.reporter(), user=lambda name, args, kwargs: USER if "by_argument" in args else None)

app.task(name="succeed")(work.succeed)
app.task(name="by_argument")(work.ignore)
app.task(name="progress")(work.progress)
app.task(name="broken")(work.broken)
app.task(name="slow")(work.slow)
app.task(name="measured")(work.measured)
app.task(name="suicide")(work.suicide)
app.task(name="limited", time_limit=1)(work.slow)
app.task(name="soft", soft_time_limit=1)(work.slow)
app.task(name="late", acks_late=True)(work.slow)
app.task(name="hopeless", autoretry_for=(ConnectionError,), max_retries=1, default_retry_delay=0.5)(work.hopeless)


@app.task(name="flaky", bind=True, max_retries=5)  # type: ignore[untyped-decorator]  # Celery has no types
def flaky(self: Any, key: str) -> None:
    try:
        work.flaky(key)
    except ConnectionError as error:
        raise self.retry(exc=error, countdown=0.5) from error


@app.task(name="rejected")  # type: ignore[untyped-decorator]
def rejected() -> None:
    raise Reject("not for me", requeue=False)


@app.task(name="ignored")  # type: ignore[untyped-decorator]
def ignored() -> None:
    raise Ignore


@app.task(name="parent")  # type: ignore[untyped-decorator]
def parent() -> str:
    return str(app.tasks["succeed"].apply_async(task_id=f"child-{os.urandom(4).hex()}").id)


@app.task(name="total")  # type: ignore[untyped-decorator]
def total(results: list[Any]) -> int:
    return len(results)


def send(name: str, args: list[Any], options: dict[str, Any]) -> str:
    headers = {"headers": {"ringcast_user": USER}} if name != "by_argument" else {}
    if name in ("group", "chord", "broken chord"):
        parts = [app.signature("progress"), app.signature("broken" if "broken" in name else "succeed")]
        if name == "group":
            result = group(parts).apply_async(**headers)
        else:
            result = chord(parts, app.signature("total", **headers)).apply_async(**headers)
        return whole(result, user=USER, name=name).id
    return str(app.send_task(name, args, **headers, **options).id)


def abort(id: str) -> None:
    app.control.revoke(id, terminate=True)
