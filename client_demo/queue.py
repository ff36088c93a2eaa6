"""Where the demo's jobs wait for a worker: Celery's queue in a Redis, or in a folder where there is no server."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.transport import filesystem
from kombu.utils.json import dumps


def celery_at(place: str) -> Celery:
    """`place` is a Redis as redis://..., or a folder: the same for whoever sends jobs and whoever does them."""
    app = Celery("client_demo", set_as_current=False)
    app.conf.update(
        task_ignore_result=True,  # what comes of a job reaches its watchers through the gateway
        worker_prefetch_multiplier=1,  # a job that nobody works at yet waits where any worker may take it
        broker_connection_retry_on_startup=False,
    )
    if place.startswith("redis://"):
        app.conf.update(broker_url=place)
        return app
    folders = {name: str(Path(place, name)) for name in ("waiting", "taken", "control")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    app.conf.update(
        broker_url="filesystem://localhost",
        broker_transport=f"{__name__}:Transport",
        broker_transport_options={
            "data_folder_in": folders["waiting"], "data_folder_out": folders["waiting"],
            "control_folder": folders["control"],
            "store_processed": True, "processed_folder": folders["taken"],  # else they pass through /tmp
            "polling_interval": 0.1,
        },
    )  # fmt: skip
    return app


class Channel(filesystem.Channel):  # type: ignore[misc]  # kombu has no types
    """Celery's writes a message where its reader may find it unfinished, and lose it. A rename is all or nothing."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        name = f"{time.monotonic_ns()}_{uuid.uuid4()}.{queue}.msg"
        unfinished = Path(self.data_folder_out, f".{name}")  # of a queue that nobody reads
        unfinished.write_text(dumps(payload))
        unfinished.rename(Path(self.data_folder_out, name))


class Transport(filesystem.Transport):  # type: ignore[misc]
    Channel = Channel
