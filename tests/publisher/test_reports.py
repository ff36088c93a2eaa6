"""The background sender: gateways that are away, slow or unwell, bounds, threads, forks and the ends of processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from publisher.jobs import JobReporter
from tests.publisher.faults import CUT, Reply, Request, faulty, problem
from tests.support.gateway import ROOT, Gateway
from tests.support.jobs import state
from tests.support.keys import API_KEY


@pytest.fixture(scope="module")
def reporter(gateway: Gateway) -> Iterator[JobReporter]:
    with JobReporter(gateway.url, API_KEY) as reporter:
        yield reporter


def stored(request: Request) -> Reply:
    return Reply(body=b'{"job": null, "stale": false}')


# ---------------------------------------------------------------- a gateway that is away, slow or unwell


def test_what_happens_while_the_gateway_is_away_is_told_when_it_is_back() -> None:
    gateway = Gateway()
    reporter = JobReporter(f"http://127.0.0.1:{gateway.port}", API_KEY)
    began = time.monotonic()
    jobs = [reporter.job(f"away-{n}", user="away") for n in range(50)]
    for job in jobs:
        job.queued()
        with job:
            for _ in job.track(range(100)):
                pass
    assert time.monotonic() - began < reporter.wait + 2, "it waited for a gateway that is away"
    assert not reporter.flush(0.1)
    with gateway:
        assert reporter.flush(20)
        assert {state(gateway, job)["state"] for job in jobs} == {"succeeded"}
        reporter.close()


@pytest.mark.parametrize(
    "trouble",
    [CUT, problem(503, "unavailable"), problem(429, "rate_limited"), problem(500, "x"), problem(401, "unauthorised")],
)
def test_trouble_is_tried_again_until_it_is_over(trouble: Reply) -> None:
    async def main() -> None:
        async with faulty(trouble, trouble, stored) as server:
            reporter = JobReporter(server.url)
            reporter.job("a").succeeded(1)
            assert await reporter.aflush(10)
            assert [request.path for request in server.requests] == ["/v1/jobs/a"] * 3

    asyncio.run(main())


def test_a_refusal_costs_its_own_report_alone_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        full = problem(409, "too_many_keys")
        async with faulty(full, full, stored) as server:
            reporter = JobReporter(server.url)
            for name in "abc":
                reporter.job(name).succeeded()
            assert await reporter.aflush(10)
            assert len(server.requests) == 3
            await reporter.aclose()

    asyncio.run(main())
    assert [r.levelname for r in caplog.records if r.name == "ringcast.jobs"] == ["ERROR"]


def test_a_slow_gateway_is_waited_for_once() -> None:
    async def main() -> None:
        async with faulty(Reply(stall=True)) as server:
            reporter = JobReporter(server.url, wait=0.2, exit_wait=0)

            def work() -> list[float]:
                took = []
                for n in range(5):
                    began = time.monotonic()
                    with reporter.job(f"slow-{n}"):
                        pass
                    took.append(time.monotonic() - began)
                return took

            first, *others = await asyncio.to_thread(work)
            assert first >= 0.2
            assert max(others) < 0.2
            await reporter.aclose()

    asyncio.run(main())


def test_what_waits_is_bounded_and_ends_are_given_up_last() -> None:
    gateway = Gateway()
    reporter = JobReporter(f"http://127.0.0.1:{gateway.port}", API_KEY, jobs=10)
    ended = [reporter.job(f"ended-{n}", user="bound") for n in range(8)]
    running = [reporter.job(f"running-{n}", user="bound") for n in range(20)]
    for job in ended[:4]:
        job.succeeded()
    for job in running:
        job.started()
    for job in ended[4:]:
        job.succeeded()
    assert reporter.dropped >= 18 - 1, "one of them may be on its way"
    with gateway:
        assert reporter.flush(20)
        assert {state(gateway, job)["state"] for job in ended} == {"succeeded"}
        reporter.close()


def test_results_that_wait_are_bounded_in_bytes() -> None:
    reporter = JobReporter("http://127.0.0.1:9", size=100_000, exit_wait=0)
    for n in range(50):
        reporter.job(f"big-{n}").succeeded("x" * 10_000)
    assert 50 - 12 <= reporter.dropped < 50
    reporter.close()


# ---------------------------------------------------------------- threads and processes


def test_threads_share_a_reporter(gateway: Gateway, reporter: JobReporter) -> None:
    def work(thread: int) -> None:
        for n in range(10):
            with reporter.job(f"thread-{thread}-{n}", user="threads") as job:
                for _ in job.track(range(50)):
                    pass

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reporter.flush()
    with gateway.http() as http:
        found = http.get("/v1/jobs", params={"user": "threads"}).json()["jobs"]
    assert len(found) == 80
    assert {job["state"] for job in found} == {"succeeded"}


LIMITED = """
    import resource, threading
    from publisher.jobs import JobReporter

    reporter = JobReporter()
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
    threading.stack_size(1 << 30)  # there is no room for a thread
    with reporter.job("limited", user="limited") as job:
        for _ in job.track("abc"):
            pass
    assert not reporter.flush(0.1)
    threading.stack_size(1 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    reporter.job("more", user="limited").succeeded()
    assert reporter.flush(10)
"""


def test_a_process_that_can_start_no_thread_works_on_and_tells_later(gateway: Gateway) -> None:
    run(gateway, LIMITED)
    with gateway.http() as http:
        found = http.get("/v1/jobs", params={"user": "limited"}).json()["jobs"]
    assert {job["job"]: job["state"] for job in found} == {"limited": "succeeded", "more": "succeeded"}


FORKS = """
    import os, sys, threading
    from publisher.jobs import JobReporter

    reporter = JobReporter()
    job = reporter.job("before", user="fork")
    busy = threading.Thread(target=lambda: [job.progress(n) for n in range(200_000)])
    busy.start()
    children = []
    for n in range(4):
        if not (pid := os.fork()):
            with reporter.job(f"child-{n}", user="fork") as mine:
                for _ in mine.track(range(1000)):
                    pass
            job.progress(1)
            reporter.close()
            os._exit(0)
        children.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    busy.join()
    job.succeeded()
    sys.exit(any(codes))
"""


def run(gateway: Gateway, script: str) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RINGCAST_")} | {
        "RINGCAST_URL": gateway.url, "RINGCAST_API_KEY": API_KEY, "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, env=env, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_forked_workers_have_a_sender_of_their_own(gateway: Gateway) -> None:
    """While another thread of the parent is in the middle of telling something."""
    run(gateway, FORKS)
    with gateway.http() as http:
        found = http.get("/v1/jobs", params={"user": "fork"}).json()["jobs"]
    assert {job["job"]: job["state"] for job in found} == {
        "before": "succeeded", **{f"child-{n}": "succeeded" for n in range(4)},
    }  # fmt: skip


def test_a_process_that_ends_says_its_last(gateway: Gateway) -> None:
    run(gateway, """
        from publisher.jobs import JobReporter
        JobReporter().job("last", user="last").succeeded(1)
    """)  # fmt: skip
    with gateway.http() as http:
        assert http.get("/v1/jobs/last", params={"user": "last"}).json()["job"]["result"] == 1


SIGNALS = """
    import os, signal
    from publisher.jobs import JobReporter

    reporter = JobReporter()
    reporter.job("signals", user="signals").succeeded()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)
    assert reporter.flush(10)
    assert signal.sigpending() == {signal.SIGTERM}
    assert signal.sigwait({signal.SIGTERM}) == signal.SIGTERM
"""


def test_a_signal_that_its_process_blocks_waits(gateway: Gateway) -> None:
    """Or a process of Celery's pool ends while it holds the pipe of all, which stops its worker for good."""
    run(gateway, SIGNALS)
