"""Telling a gateway of jobs, from whatever runs them; nothing here blocks the job or fails it.

    reporter = JobReporter()

    with reporter.job("report-7", user="42") as job:      # started; then succeeded, or failed with what was raised
        for row in job.track(rows):                       # progress
            work(row)

The methods of a job note what they are told and return at once, in threads, in coroutines and in forked workers alike;
a thread in the background does the talking (see `publisher.reports`). While the gateway is away the newest state of
each job is kept.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from typing import Self

import httpx

from publisher.client import Endpoint
from publisher.exchange import Retry
from publisher.job import EVERY, MAX_RESULT, Job, current
from publisher.message import new_id
from publisher.reports import Report, Reports, Told

__all__ = ["EVERY", "LEASE", "MAX_RESULT", "Job", "JobReporter", "current"]

LEASE = 30.0  # seconds without a sign of life after which the gateway calls a job stalled, and twice that lost


class JobReporter:
    """Tells a gateway of jobs, in the background. Share one in a process; it follows into forked children.

    `url` (else RINGCAST_URL) and `key` (else RINGCAST_API_KEY) are as for `Publisher`. `lease` (seconds) is how long a
    job may be silent. `jobs` and `size` (bytes) bound what is kept while the gateway is away: progress is given up
    first, then the oldest ends. `wait` (seconds) is how long the end of a job waits at most to be stored, and only
    while the gateway answers promptly; `exit_wait` how long the process's own end does. `transport` makes httpx's, for
    tests and unusual networks.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, lease: float = LEASE, jobs: int = 10_000,
        size: int = 16 << 20, wait: float = 0.5, exit_wait: float = 5.0,
        transport: Callable[[], httpx.BaseTransport] | None = None,
    ) -> None:  # fmt: skip
        """Raises ValueError for a URL, key or lease that cannot work."""
        if not 0.1 <= lease <= 3600:
            raise ValueError("lease must be between 0.1 and 3600 seconds")
        endpoint = Endpoint(url, key, Retry(), chunk=1)
        self.url = endpoint.url
        self.lease = lease
        self.wait = wait
        self._exit_wait = exit_wait
        secure = self.url.startswith("https:")
        self._reports = Reports(endpoint.headers, secure=secure, jobs=jobs, size=size, transport=transport)
        atexit.register(self.close)

    def job(
        self, id: str | None = None, *, user: str | None = None, name: str | None = None, attempt: int = 1,
        lease: float | None = None, parent: str | None = None, weight: float | None = None,
        children: int | None = None, queued_at: int | None = None,
    ) -> Job:  # fmt: skip
        """One attempt at a job. Says nothing by itself.

        `id` (else a ULID is made) and `user` name it: give the same wherever it is told of. `attempt` is the queue's
        own count and must grow with each retry. `lease` (seconds; 0: none is granted) is how long it may be silent.
        `parent` is the job that this one is a part of, with `weight` (else 1); `children` is how many parts it has
        itself. `queued_at` is when it was queued (milliseconds since 1970). Raises InvalidMessage.
        """
        return Job(
            self._reports, f"{self.url}/v1/jobs/", new_id() if id is None else id,
            self.lease if lease is None else lease, self.wait, user=user, name=name, attempt=attempt, parent=parent,
            weight=weight, children=children, queued_at=queued_at,
        )  # fmt: skip

    def tell(self, report: Report) -> None:
        """Tell what the end of a job in another process was, which ended before it could tell it (`Job.report`)."""
        self._reports.note(Told(report))

    @property
    def dropped(self) -> int:
        """How often the newest state of a job was given up, because too many waited for the gateway."""
        return self._reports.dropped

    def flush(self, within: float = 5.0) -> bool:
        """Wait until all that was said is stored, at most `within` seconds; tells whether it is."""
        return self._reports.flush(within)

    async def aflush(self, within: float = 5.0) -> bool:
        return await asyncio.to_thread(self.flush, within)

    def close(self, within: float | None = None) -> None:
        """Flush, and say nothing more. Called at the interpreter's exit by itself."""
        self._reports.close(self._exit_wait if within is None else within)
        atexit.unregister(self.close)

    async def aclose(self, within: float | None = None) -> None:
        await asyncio.to_thread(self.close, within)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"
