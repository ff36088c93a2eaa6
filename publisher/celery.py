"""Celery's tasks as jobs.

    from publisher.celery import report

    report()                                                   # where the Celery application is made

    render.apply_async((7,), headers={"ringcast_user": "42"})  # the job's id is the task's
    publisher.jobs.current().progress(1, 3)                    # in a task

By Celery's signals, in whatever process they are sent: the one that sends a task, a worker's main process (tasks that
are revoked, unknown, over their hard time limit or whose process died) and its pool's processes and threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from threading import get_ident
from typing import Any
from weakref import WeakValueDictionary

from celery import current_task, signals
from celery.app.task import Task
from celery.exceptions import MaxRetriesExceededError, Reject
from celery.result import AsyncResult, GroupResult

from publisher.job import Failure, Job
from publisher.jobs import JobReporter
from publisher.tasks import Given, Tasks, UserOf

Chord = Mapping[str, Any] | None  # the body of the chord that a task is in the header of, as Celery carries it
OWN = "celery."  # names of Celery's own tasks begin so

log = logging.getLogger("ringcast.jobs")


def report(
    reporter: JobReporter | None = None, *, user: UserOf | None = None, tasks: Container[str] | None = None,
    results: bool = False,
) -> JobReporter:  # fmt: skip
    """Tell of every task that this process sends or runs; call it before a worker begins. The last call counts.

    `user` makes the user of a task from its name, args and kwargs, where its header `ringcast_user` does not say;
    tasks sent by a task belong to its user. `tasks` names those that are told of, else all are. `results` tells users
    what their tasks return. Raises ValueError for a URL or key that cannot work.
    """
    global _installed
    if _installed is not None:
        _installed.disconnect()
    _installed = Signals(Tasks(reporter, user, tasks), results)
    _installed.connect()
    return _installed.tasks.reporter


def whole(result: Any, *, user: str | None = None, name: str = "") -> Job:
    """Tell of the whole that a group's or a chord's tasks are the parts of; `result` is what sending it returned.

    The id of the job is that of the result: of a group its own, of a chord its body's. Its parts name it as their
    parent by themselves. Give the `user` that the parts have. Raises TypeError for a result of neither, and
    RuntimeError where `report` was not called.
    """
    if _installed is None:
        raise RuntimeError("call publisher.celery.report() first: it says who is told")
    if isinstance(result, GroupResult):
        children = len(result.results)
    elif isinstance(result, AsyncResult) and isinstance(result.parent, GroupResult):
        children = len(result.parent.results) + 1  # its body is the last
    else:
        raise TypeError(f"{result!r} is the result of neither a group nor a chord")
    job = _installed.tasks.job(result.id, name, {"ringcast_user": user}, children=children)
    job.queued()
    return job


class Signals:
    """What each signal says of a job. Celery logs what a handler raises, and goes on."""

    def __init__(self, tasks: Tasks, results: bool) -> None:
        self.tasks, self._results = tasks, results
        # By the task's id and the thread: a retry may begin in another before the attempt before it is dealt with.
        self._running: dict[tuple[str, int], Job] = {}
        self._received: WeakValueDictionary[str, Any] = WeakValueDictionary()  # what its pool was given
        self._handlers: list[tuple[Any, Callable[..., None]]] = [
            (signals.before_task_publish, self._sending), (signals.after_task_publish, self._sent),
            (signals.task_received, self._was_received), (signals.task_prerun, self._begins),
            (signals.task_success, self._succeeded), (signals.task_retry, self._retries),
            (signals.task_failure, self._failed), (signals.task_postrun, self._ends),
            (signals.task_revoked, self._revoked), (signals.task_unknown, self._unknown),
            (signals.worker_process_shutdown, self._process_ends),
        ]  # fmt: skip

    def connect(self) -> None:
        for signal, handler in self._handlers:
            signal.connect(handler, weak=False)

    def disconnect(self) -> None:
        for signal, handler in self._handlers:
            signal.disconnect(handler)

    # ---------------------------------------------------------------- who sends

    def _sending(self, sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
        if "id" not in headers or not self._told(sender):
            return  # by Celery's old protocol, which has no headers
        args, kwargs, embedded = body
        headers.update(self._about(sender, headers, args, kwargs, embedded.get("chord")))
        if "ringcast_user" not in headers and current_task and (user := current_task.request.get("ringcast_user")):
            headers["ringcast_user"] = user  # of a task that is Celery's own: it sends the body of a chord

    def _sent(self, sender: str, headers: dict[str, Any], **_: Any) -> None:
        # Not before it is sent: it may not be. A worker that was quicker is the newer.
        if "id" in headers and self._told(sender) and not headers.get("retries"):
            self.tasks.job(headers["id"], sender, headers).queued()

    # ---------------------------------------------------------------- where it runs

    def _begins(self, task: Any, task_id: str, args: Any, kwargs: Any, **_: Any) -> None:
        if self._told(task.name):
            job = self._job(task.name, task.request, args, kwargs, task.request.chord)
            self._running[task_id, get_ident()] = job.__enter__()

    def _succeeded(self, sender: Any, result: Any, **_: Any) -> None:
        if (job := self._running.get((sender.request.id, get_ident()))) is not None:
            job.succeeded(result if self._results else None)

    def _retries(self, sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
        # Without a reason the pool was taken from it, when the connection was lost: it comes again as the same attempt.
        if reason is not None and self._told(sender.name):
            job = self._running.get((request.id, get_ident()))
            job = job or self._job(sender.name, request, request.args, request.kwargs, request.chord)
            job.retrying(reason.exc or str(reason))

    def _failed(self, sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
        job = self._running.get((task_id, get_ident()))
        if job is not None:
            self._give_up(job, sender.request.chord, exception, dead=_exhausted(exception))
            return
        request = self._received.get(task_id)  # it ran in another process, which could not say this itself
        if request is not None and self._told(sender.name):
            job = self._job(sender.name, request.request_dict, request.args, request.kwargs, request.chord)
            if isinstance(exception, Reject):
                self._give_up(job, request.chord, exception.reason, dead=True)
            else:
                self._give_up(job, request.chord, exception, dead=False)

    def _ends(self, task: Any, task_id: str, state: str | None, retval: Any, **_: Any) -> None:
        job = self._running.pop((task_id, get_ident()), None)
        if job is None:
            return
        if state == "REJECTED" and not retval.requeue:
            self._give_up(job, task.request.chord, retval.reason, dead=True)
        elif state == "IGNORED":
            job.cancelled("It asked to be ignored")
        job.leave()  # rejected to come again, or ended together with its process: others know how
        if job.ended:
            job.settle()

    def _process_ends(self, **_: Any) -> None:
        self.tasks.reporter.close()

    # ---------------------------------------------------------------- a worker's main process

    def _was_received(self, request: Any, **_: Any) -> None:
        self._received[request.id] = request

    def _revoked(self, sender: Any, request: Any, expired: bool, terminated: bool, **_: Any) -> None:
        if self._told(sender.name):
            job = self._job(sender.name, request, request.args, request.kwargs, request.chord)
            job.cancelled("It expired" if expired else "It was ended" if terminated else "It was revoked")
            self._fail_body(job, request.chord)

    def _unknown(self, message: Any, name: str, **_: Any) -> None:
        if self._told(name):
            args, kwargs, embedded = message.payload
            chord = embedded.get("chord")
            job = self._job(name, message.headers, args, kwargs, chord)
            self._give_up(job, chord, f"This worker knows no task {name}", dead=False)

    # ---------------------------------------------------------------- inside

    def _told(self, name: str) -> bool:
        return not name.startswith(OWN) and self.tasks.told(name)

    def _about(self, name: str, request: Given, args: Any, kwargs: Any, chord: Chord) -> dict[str, Any]:
        about = self.tasks.about(name, args or (), kwargs or {}, request)
        if "ringcast_parent" not in about:
            # The body of a chord is said to be of its header's group too, but at no place in it.
            parent = request.get("group") if request.get("group_index") is not None else None
            if (parent := _body(chord) or parent) is not None:
                about["ringcast_parent"] = parent
        return about

    def _job(self, name: str, request: Given, args: Any, kwargs: Any, chord: Chord) -> Job:
        """Of a task as its worker has it; a sender without `report` said nothing of its job."""
        about = self._about(name, request, args, kwargs, chord)
        return self.tasks.job(str(request.get("id")), name, about, int(request.get("retries") or 0) + 1)

    def _give_up(self, job: Job, chord: Chord, error: Failure, *, dead: bool) -> None:
        if dead:
            job.dead_lettered(error)
        else:
            job.failed(error)
        self._fail_body(job, chord)

    def _fail_body(self, part: Job, chord: Chord) -> None:
        """The body of a chord never runs when a task of its header fails, and then nobody else tells of it."""
        body = _body(chord)
        if chord is not None and body is not None:
            name = str(chord.get("task") or "")
            self.tasks.job(body, name, {"ringcast_user": part.user}).failed("A part of it failed")


_installed: Signals | None = None


def _body(chord: Chord) -> str | None:
    return None if chord is None else chord.get("options", {}).get("task_id")


def _exhausted(error: BaseException) -> bool:
    """Whether it was raised by `retry`, because that was the last one: with `exc` it raises that."""
    if isinstance(error, MaxRetriesExceededError):
        return True
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is Task.retry.__code__:
            return True
        trace = trace.tb_next
    return False
