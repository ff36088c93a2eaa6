"""From a queue's task to the job that is told of it: what the integrations of queues share.

A task's user is what its message says as `ringcast_user` (a header, option, label, meta entry or keyword, as the queue
has it), else what the application's own function makes of its arguments, else that of the job which sent it.
Nothing here fails a task: what cannot be told is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Protocol

from publisher.errors import InvalidMessage
from publisher.job import Job, current
from publisher.jobs import JobReporter

UserOf = Callable[[str, Sequence[Any], Mapping[str, Any]], str | None]  # of a task's name and arguments


class Given(Protocol):
    """What a message carries beside its arguments; None stands for what it does not."""

    def get(self, field: str, /) -> Any: ...


FIELDS = ("ringcast_user", "ringcast_parent", "ringcast_weight")  # what a task's message may say of its job

log = logging.getLogger("ringcast.jobs")


class Tasks:
    """Which tasks are told of, and to whom they belong."""

    def __init__(self, reporter: JobReporter | None, user: UserOf | None, only: Container[str] | None) -> None:
        """`only` holds the names of the tasks that are told of; without it all are. Raises ValueError."""
        self.reporter = JobReporter() if reporter is None else reporter
        self._user, self._only = user, only

    def told(self, name: str) -> bool:
        return self._only is None or name in self._only

    def about(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: Given
    ) -> dict[str, Any]:
        """What a message says of its job, completed: this is what the task's worker is to be sent."""
        about = {field: given.get(field) for field in FIELDS if given.get(field) is not None}
        if "ringcast_user" not in about:
            user = self._user_of(name, args, kwargs)
            if user is None:
                user = current().user
            if user is not None:
                about["ringcast_user"] = user
        return about

    def job(
        self, id: str, name: str, about: Mapping[str, Any], attempt: int = 1, lease: float | None = None,
        children: int | None = None,
    ) -> Job:  # fmt: skip
        """The job of one attempt; where it cannot be one, it says nothing to anybody."""
        try:
            return self.reporter.job(
                id, user=about.get("ringcast_user"), name=name[:200] or None, attempt=attempt, lease=lease,
                parent=about.get("ringcast_parent"), weight=about.get("ringcast_weight"), children=children,
            )  # fmt: skip
        except InvalidMessage as error:
            log.error("task %s %s is not told of: %s", name, id, error)
            return Job(None, "", "none", 0, 0)

    def _user_of(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        if self._user is None:
            return None
        try:
            return self._user(name, args, kwargs)
        except Exception:  # the application's own function, which must not fail the task
            log.exception("whose task %s is cannot be said", name)
            return None
