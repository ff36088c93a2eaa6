"""The demo's jobs: real Celery tasks, from the button to every page of their user, in a real browser."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page

from client_demo.backend import COURSES, IMAGES
from client_demo.processes import worker
from tests.browser.conftest import CORS, RESOURCE_FAILED, WEBSOCKET_403, WEBSOCKET_FAILED, Visits, demo
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY
from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}

# Keeps what the rows have shown, in the page itself: a state that lasts for a moment is not to be missed by a test.
WATCH = """() => {
  window.shown = [];
  const note = ({ dataset: { job, state, attempt } }) => window.shown.push([job, state, Number(attempt)]);
  new MutationObserver((changes) => changes.forEach(({ target }) => target.matches(".job") && note(target)))
    .observe(document.getElementById("jobs"), { subtree: true, attributeFilter: ["data-state", "data-attempt"] });
}"""

ROWS = """all => all.map((row) => [
  row.dataset.job, row.dataset.state, row.querySelector(".foot .note")?.textContent ?? "",
])"""


@dataclass
class Demo:
    url: str
    gateway: Gateway
    told: Proxy  # between whoever tells of jobs and the gateway
    line: Proxy  # between pages and the gateway
    worker: int  # its process group

    async def start(self, kind: str, course: str = "works") -> str:
        """As the page's button does; returns the id that it is answered."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=30) as http:
            response = await http.post("/demo/jobs", json={"kind": kind, "course": course})
        assert response.status_code == 202, response.text
        return str(response.json()["job"])

    def state(self, job: str) -> dict[str, Any]:
        with self.gateway.http() as http:
            return dict(http.get(f"/v1/jobs/{job}", params={"user": "demo"}).raise_for_status().json()["job"])

    def parts(self, job: str) -> list[dict[str, Any]]:
        with self.gateway.http() as http:
            answer = http.get("/v1/jobs", params={"user": "demo", "parent": job}).raise_for_status().json()
        return list(answer["jobs"])

    @contextmanager
    def nobody_works(self) -> Iterator[None]:
        """The worker stands still, with all that it has begun."""
        os.killpg(self.worker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.worker, signal.SIGCONT)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(gateway: Gateway) -> AsyncIterator[Demo]:
    with TemporaryDirectory(prefix="ringcast-jobs-", ignore_cleanup_errors=True) as folder:
        async with Proxy(gateway.port) as told, Proxy(gateway.port) as line:
            keys = {"RINGCAST_URL": told.url, "RINGCAST_API_KEY": API_KEY}
            started = worker(keys | {"DEMO_QUEUE": folder, "DEMO_PACE": "0.15"})
            async with started as process, demo(told.url, line.url, folder) as url:
                yield Demo(url, gateway, told, line, process.pid)


@pytest.fixture
def line(here: Demo) -> Iterator[Proxy]:
    """The way from pages to the gateway, which is healed afterwards."""
    yield here.line
    here.line.heal("/v1/ws")
    here.line.heal("/v1/sse")


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, and reports of this course, go on until they are cancelled."""
    monkeypatch.setitem(COURSES, "endless", {"rows": 10**9})
    for name in IMAGES:
        monkeypatch.setitem(IMAGES, name, 10**6)


async def until(page: Page, job: str, state: str, within: float = 20) -> None:
    await page.wait_for_selector(f"#jobs .job[data-job='{job}'][data-state='{state}']", timeout=1000 * within)


async def rows(page: Page) -> dict[str, tuple[str, str]]:
    """The state and the words of each job, and of each part, that the page shows."""
    found: list[list[str]] = await page.eval_on_selector_all("#jobs .job", ROWS)
    return {job: (state, words) for job, state, words in found}


async def newest(page: Page) -> str:
    return str(await page.get_attribute("#jobs > .job", "data-job"))


async def press(page: Page, course: str) -> str:
    """Start a report that goes this way, on the page; returns its id."""
    before = await page.locator("#jobs > .job").count()
    await page.click(f"#courses input[value={course}] + span")
    await page.click("#report")
    await page.wait_for_function("n => document.querySelectorAll('#jobs > .job').length > n", arg=before)
    return await newest(page)


async def test_every_way_a_job_can_go_is_seen_on_every_page_of_its_user(here: Demo, visit: Visits) -> None:
    desk = await visit(here.url)
    await desk.status("open", "websocket")
    tab = await desk.context.new_page()
    await tab.goto(here.url)
    phone = await visit(here.url, **PHONE)
    await phone.status("open")
    pages = [desk.page, tab, phone.page]
    for page in pages:
        await page.wait_for_selector("#state[data-state=open]")
        await page.evaluate(WATCH)
    works, retries, fails, gives_up = [
        await press(desk.page, course) for course in ("works", "retries", "fails", "gives-up")
    ]
    await desk.page.click("#images")
    await desk.page.wait_for_selector("#jobs > .job:has(.parts .job)")
    images = await newest(desk.page)

    late = await visit(here.url, **PHONE)  # when all of them are on their way
    pages.append(late.page)
    ends = {works: "succeeded", retries: "succeeded", fails: "failed", gives_up: "dead_lettered", images: "succeeded"}
    for page in pages:
        for job, end in ends.items():
            await until(page, job, end)
    shown = [await rows(page) for page in pages]
    assert all(each == shown[0] for each in shown)
    assert shown[0][works][1] == shown[0][retries][1] == "4,000 rows, ready to download"
    assert shown[0][fails][1] == "There are no figures for this quarter."
    assert shown[0][gives_up][1] == "The warehouse does not answer."
    assert shown[0][images][1] == "5 of 5 images"
    parts = [job for job in shown[0] if job.startswith(f"{images}-")]
    assert len(parts) == 5
    assert all(shown[0][part][0] == "succeeded" for part in parts)

    for page in pages[:3]:
        steps: dict[str, list[list[Any]]] = {}
        for job, state, attempt in await page.evaluate("window.shown"):
            steps.setdefault(job, []).append([state, attempt])
        assert any(state == "progress" for job in (works, retries, images) for state, _ in steps[job])
        assert steps[retries].index(["retrying", 1]) < steps[retries].index(["succeeded", 2])
        assert steps[gives_up].index(["retrying", 1]) < steps[gives_up].index(["retrying", 2])
        assert steps[gives_up][-1] == ["dead_lettered", 3]
        assert all(steps[job][-1][0] == end for job, end in ends.items())
    for narrow in (phone, late):
        assert await narrow.page.evaluate("document.documentElement.scrollWidth") == 360
        await narrow.page.click("#report")  # it can be reached, and nothing lies over it
    await desk.page.wait_for_function("n => document.querySelectorAll('#jobs > .job').length === n", arg=len(ends) + 2)


async def test_progress_of_the_whole_is_that_of_its_parts_by_their_weight(here: Demo, visit: Visits) -> None:
    page = (await visit(here.url)).page
    job = await here.start("images")
    await until(page, f"{job}-4", "succeeded")  # the smallest
    with here.nobody_works():

        def adds_up() -> bool:
            parts = here.parts(job)
            done = pytest.approx(sum(part["weight"] * share(part) for part in parts))
            # Nothing yet, for a moment: a part's state is stored before its whole's is made of it.
            return bool(here.state(job).get("progress") == {"done": done, "total": 76})

        await here.gateway.until(adds_up)
        await page.wait_for_function(
            "([job, share]) => Math.abs(document.querySelector(`[data-job='${job}'] > progress`).value - share) < 1e-6",
            arg=[job, share(here.state(job))],
        )
    await until(page, job, "succeeded")


def share(state: dict[str, Any]) -> float:
    if state["state"] == "succeeded":
        return 1.0
    progress = state.get("progress", {"done": 0, "total": 1})
    return float(progress["done"] / progress["total"])


async def test_what_is_cancelled_on_one_page_is_cancelled_on_the_other(
    here: Demo, endless: None, visit: Visits
) -> None:  # fmt: skip
    desk, phone = await visit(here.url), await visit(here.url, **PHONE)
    report, images = await here.start("report", "endless"), await here.start("images")
    for job in (report, images):
        await until(desk.page, job, "progress")
        await phone.page.click(f"[data-job='{job}'] > .foot button")
    for page in (desk.page, phone.page):
        for job in (report, images):
            await until(page, job, "cancelled")
            assert not await page.is_visible(f"[data-job='{job}'] > .foot button")
        assert {(await rows(page))[f"{images}-{n}"][0] for n in range(1, 6)} == {"cancelled"}
        for job in (report, images):
            got = await page.eval_on_selector(f"[data-job='{job}'] > progress", "bar => bar.value")
            assert got < 0.01, "as far as it got"


async def test_starting_a_job_waits_for_neither_the_gateway_nor_the_job(here: Demo, visit: Visits) -> None:
    page = (await visit(here.url)).page
    await page.wait_for_selector("#state[data-state=open]")
    here.told.delay("/v1/jobs", 60)
    with here.nobody_works():
        jobs = [await press(page, "works"), await here.start("report"), await here.start("images")]
        # Answered, and shown; the gateway has not heard of any of them, and nobody works at one.
        assert [here.state(job)["state"] for job in jobs] == ["pending"] * 3
        await until(page, jobs[0], "pending")
        here.told.heal("/v1/jobs")
        await until(page, jobs[0], "queued")
    for job in jobs:
        await until(page, job, "succeeded")


async def test_a_page_that_is_opened_late_shows_the_state_at_once(
    here: Demo, line: Proxy, endless: None, visit: Visits
) -> None:  # fmt: skip
    before, runs = await here.start("report"), await here.start("images")
    await here.gateway.until(lambda: here.state(before)["state"] == "succeeded", 20)
    await here.gateway.until(lambda: here.state(runs).get("progress", {}).get("done", 0) > 0, 20)
    with here.nobody_works():  # so that all there is to be shown is what a page is told when it comes
        stream = await visit(here.url)
        await stream.status("open", "websocket")
        line.block("/v1/ws")
        line.block("/v1/sse")
        polls = await visit(here.url)
        polls.allow(WEBSOCKET_403, CORS, RESOURCE_FAILED)
        await polls.status("open", "longpoll")
        for page in (stream.page, polls.page):
            await until(page, before, "succeeded")
            await until(page, runs, "progress")
            assert await page.eval_on_selector(f"[data-job='{runs}'] > progress", "bar => bar.value") > 0
            assert (await rows(page))[before][1] == "4,000 rows, ready to download"
            assert await page.locator(f"[data-job='{runs}'] > .parts > .job").count() == 5
    await polls.page.click("#transports input[value=poll] + span")
    await polls.status("open", "poll")
    await stream.page.click(f"[data-job='{runs}'] > .foot button")
    for page in (stream.page, polls.page):
        await until(page, runs, "cancelled")


async def test_after_a_gap_the_jobs_are_read_anew(here: Demo, visit: Visits) -> None:
    page = await visit(here.url)
    page.allow(WEBSOCKET_FAILED, RESOURCE_FAILED)
    await page.status("open", "websocket")
    before = await here.start("report")
    await until(page.page, before, "succeeded")
    here.gateway.restart(kill=True)  # with its store
    await page.page.wait_for_selector("#messages li.reset")
    await page.page.wait_for_function("document.querySelectorAll('#jobs .job').length === 0")
    after = await here.start("report")
    await until(page.page, after, "succeeded")
