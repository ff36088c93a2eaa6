"""`publisher.jobs` against a real gateway: what a worker says arrives, and nothing of it holds the worker up."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest

from publisher.errors import InvalidMessage
from publisher.jobs import EVERY, MAX_RESULT, Job, JobReporter, current
from tests.publisher.faults import Reply, Request, faulty
from tests.support.clients import connect
from tests.support.gateway import Gateway
from tests.support.jobs import state
from tests.support.keys import API_KEY, token


@pytest.fixture(scope="module")
def reporter(gateway: Gateway) -> Iterator[JobReporter]:
    with JobReporter(gateway.url, API_KEY) as reporter:
        yield reporter


def stored(request: Request) -> Reply:
    return Reply(body=b'{"job": null, "stale": false}')


# ---------------------------------------------------------------- what a worker says


async def test_a_jobs_life_is_told_as_it_happens(gateway: Gateway, reporter: JobReporter) -> None:
    async with await connect("websocket", gateway.url, token("ann")) as page:
        await page.joined()
        job = reporter.job(user="ann", name="report")
        job.queued()
        told = [await page.message()]
        async with job:
            told.append(await page.message())
            job.progress(1, 3, "first")
            told.append(await page.message())
        told.append(await page.message())
    data = [message["data"] for message in told]
    assert [each["state"] for each in data] == ["queued", "started", "progress", "succeeded"]
    assert {each["name"] for each in data} == {"report"}
    assert data[2]["progress"] == data[3]["progress"] == {"done": 1, "total": 3, "note": "first"}
    assert [each["final"] for each in data] == [False, False, False, True]
    assert data[3]["times"].keys() == {"queued", "started", "updated", "ended"}


def test_the_end_is_stored_when_the_context_is_left(gateway: Gateway, reporter: JobReporter) -> None:
    with reporter.job() as job:
        pass
    assert state(gateway, job)["state"] == "succeeded"


@pytest.mark.parametrize("error", [ValueError("no such row"), KeyboardInterrupt()])
def test_what_is_raised_fails_the_job_and_goes_on(
    gateway: Gateway, reporter: JobReporter, error: BaseException
) -> None:
    job = reporter.job()
    with pytest.raises(type(error)), job:
        raise error
    found = state(gateway, job)
    assert (found["state"], found["error"]) == ("failed", {"type": type(error).__name__, "message": str(error)})


async def test_a_cancelled_coroutine_cancels_its_job(gateway: Gateway, reporter: JobReporter) -> None:
    job, begun = reporter.job(), asyncio.Event()

    async def work() -> None:
        async with job:
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert state(gateway, job)["state"] == "cancelled"


def test_the_first_end_counts_and_nothing_follows_it(gateway: Gateway, reporter: JobReporter) -> None:
    with reporter.job() as job:
        job.retrying("again")
        job.succeeded(1)
        job.progress(1)
    reporter.flush()
    found = state(gateway, job)
    assert (found["state"], found["error"], found["final"]) == ("retrying", {"message": "again"}, False)
    with reporter.job(job.id, attempt=2) as again:
        again.succeeded({"rows": 7})
    assert (state(gateway, job)["attempt"], state(gateway, job)["result"]) == (2, {"rows": 7})


@pytest.mark.parametrize("end", ["dead_lettered", "cancelled", "failed"])
def test_a_job_ends_in_every_way(gateway: Gateway, reporter: JobReporter, end: str) -> None:
    job = reporter.job(user="ends")
    getattr(job, end)("for a reason")
    assert job.settle()
    assert (state(gateway, job)["state"], state(gateway, job)["error"]) == (end, {"message": "for a reason"})


def test_a_loop_is_tracked_and_throttled(gateway: Gateway, reporter: JobReporter) -> None:
    began = time.monotonic()
    with reporter.job() as job:
        for _ in job.track([1] * 30_000):
            pass
        took = time.monotonic() - began
        reporter.flush()
        told = state(gateway, job)
        assert told["progress"] == {"done": 30_000, "total": 30_000}
        assert told["seq"] <= 2 + (took / EVERY) + 1


async def test_what_is_awaited_is_tracked(gateway: Gateway, reporter: JobReporter) -> None:
    async def rows() -> AsyncIterator[int]:
        for n in range(5):
            yield n

    async with reporter.job() as job:
        assert [n async for n in job.atrack(rows(), 5)] == [0, 1, 2, 3, 4]
        await reporter.aflush()
        assert state(gateway, job)["progress"] == {"done": 5, "total": 5}


def test_the_current_job_is_at_hand_and_harmless_where_there_is_none(reporter: JobReporter) -> None:
    assert list(current().track("ab")) == ["a", "b"]
    with reporter.job() as outer:
        with reporter.job() as inner:
            assert current() is inner
        assert current() is outer
    with current() as nobody:
        nobody.failed()


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("result", [object(), float("nan"), "x" * MAX_RESULT, {1: {2}}])
def test_a_result_that_cannot_be_told_is_left_out(gateway: Gateway, reporter: JobReporter, result: Any) -> None:
    with reporter.job() as job:
        job.progress(float("nan"), note="\ud800")
        job.succeeded(result)
    found = state(gateway, job)
    assert found["state"] == "succeeded"
    assert "progress" not in found
    assert "result" not in found or result == {1: {2}}


def test_an_error_that_cannot_be_shown_fails_the_job_all_the_same(gateway: Gateway, reporter: JobReporter) -> None:
    job = reporter.job()
    with pytest.raises(Unshowable), job:
        raise Unshowable
    assert state(gateway, job)["error"]["type"] == "Unshowable"
    job = reporter.job()
    job.failed("\ud800" + "x" * 10_000)
    assert job.settle()
    assert state(gateway, job)["error"]["message"].startswith("?xxx")


def test_an_end_that_is_refused_is_told_without_the_rest(gateway: Gateway, reporter: JobReporter) -> None:
    job = reporter.job()
    job.progress(-1)
    job.failed("broken")
    assert job.settle()
    found = state(gateway, job)
    assert found["state"] == "failed"
    assert "error" not in found


@pytest.mark.parametrize(
    "given",
    [{"id": "a b"}, {"id": ""}, {"id": ".."}, {"id": "x" * 197}, {"user": "job.a"}, {"user": "a,b"}, {"attempt": -1},
     {"parent": "*"}, {"weight": -1.0}, {"children": 0}, {"name": ""}, {"user": "\ud800"}],
)  # fmt: skip
def test_what_cannot_be_a_job_is_refused_before_it_runs(reporter: JobReporter, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage):
        reporter.job(**given)


# ---------------------------------------------------------------- signs of life


async def test_a_job_gives_signs_of_life_until_nobody_holds_it(gateway: Gateway, reporter: JobReporter) -> None:
    async with await connect("websocket", gateway.url, token("life")) as page:
        await page.joined()
        job: Job | None = reporter.job(user="life", lease=0.3)
        assert job is not None
        job.started()
        seqs = [(await page.message())["data"]["seq"] for _ in range(4)]
        assert seqs == [1, 2, 3, 4]
        job = None
        gc.collect()
        later: list[str] = []
        with suppress(TimeoutError):
            while len(later) < 5 and later[-1:] != ["stalled"]:  # the gateway's own word that the lease is over
                later.append((await page.message(within=1.5))["data"]["state"])
        assert later.count("started") <= 1, "one may have been on its way"


def test_an_execution_whose_clock_is_behind_takes_over_from_a_lost_one() -> None:
    """The one before ran where the clock is ahead: ours would be stale for ever."""
    run = time.time_ns() // 1_000_000 + 60_000

    def stalled(request: Request) -> Reply:
        return Reply(body=b'{"stale": true, "job": {"state": "stalled", "attempt": 1, "run": %d}}' % run)

    async def main() -> None:
        async with faulty(stalled, stored) as server:
            reporter = JobReporter(server.url)
            job = reporter.job("late")
            job.started()
            await reporter.aflush()
            assert [request.lines[0]["run"] > run for request in server.requests] == [False, True]

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_reporter_names_what_it_cannot_work_with() -> None:
    with pytest.raises(ValueError, match="lease"):
        JobReporter("http://127.0.0.1:1", lease=0)
    with pytest.raises(ValueError, match="URL"):
        JobReporter("ftp://127.0.0.1")
