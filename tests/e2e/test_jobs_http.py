"""/v1/jobs on a real gateway: what is told of a job, what is then read of it, and who may."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.clients import connect, decode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.sse import Event, Parser

RUN = int(time.time() * 1000)


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as http:
        yield http


def tell(http: httpx.Client, job: str, state: str, **more: Any) -> dict[str, Any]:
    if state in ("started", "progress"):
        more = {"run": RUN} | more
    response = http.post(f"/v1/jobs/{job}", json={"state": state} | more)
    assert response.status_code == 200, response.text
    return dict(response.json())


def ask(http: httpx.Client, job: str, **query: str) -> httpx.Response:
    response = http.get(f"/v1/jobs/{job}", params=query)
    assert response.status_code == 200, response.text
    return response


def test_a_jobs_newest_event_is_its_state(http: httpx.Client) -> None:
    assert tell(http, "life", "queued", user="ann")["stale"] is False
    tell(http, "life", "progress", user="ann", seq=1, progress={"done": 1, "total": 2})
    answer = tell(http, "life", "succeeded", user="ann", result={"rows": 7})
    assert answer["channel"] == "jobs:ann"
    found = ask(http, "life", user="ann").json()
    assert found["job"] == answer["job"]
    assert (found["job"]["state"], found["job"]["final"], found["job"]["result"]) == ("succeeded", True, {"rows": 7})


@pytest.mark.parametrize("end", ["cancelled", "failed", "dead_lettered"])
def test_an_end_that_another_process_tells_keeps_what_the_execution_told(http: httpx.Client, end: str) -> None:
    """As of a queue whose main process ends the one that ran the job."""
    job = f"outside-{end}"
    progress = {"done": 1, "total": 4, "note": "Row 1"}
    began = tell(http, job, "progress", user="ann", attempt=2, seq=3, queued=RUN - 500, progress=progress)["job"]
    found = tell(http, job, end, user="ann", attempt=2)["job"]
    assert (found["run"], found["progress"]) == (RUN, progress)
    assert found["times"].items() >= {name: began["times"][name] for name in ("queued", "started")}.items()
    tell(http, f"{job}-after", "progress", user="ann", seq=3, progress=progress)
    assert "progress" not in tell(http, f"{job}-after", end, user="ann", attempt=2)["job"], "of another attempt"
    told = tell(http, f"{job}-told", end, user="ann", run=RUN)["job"]
    assert "progress" not in told, "whoever ran it says all there is"


def test_a_stale_event_is_answered_with_the_state_and_not_delivered(http: httpx.Client) -> None:
    tell(http, "stale", "succeeded", user="bea")
    before = ask(http, "stale", user="bea").json()
    late = tell(http, "stale", "started", user="bea")
    assert late["stale"] is True
    assert late["job"] == before["job"]
    assert ask(http, "stale", user="bea").json() == before


async def test_what_follows_the_state_comes_from_its_cursor(gateway: Gateway, http: httpx.Client) -> None:
    tell(http, "gap", "started", user="cid")
    found = ask(http, "gap", user="cid").json()
    tell(http, "gap", "progress", user="cid", seq=1)
    for transport in ("websocket", "sse", "poll"):
        async with await connect(transport, gateway.url, token("cid"), cursor=found["cursor"]) as client:
            message = await client.message()
            assert (message["key"], message["event"], message["data"]["state"]) == ("gap", "job", "progress")


class ServerSent:
    """The events of a stream that is read as text."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks, self._parser = chunks, Parser()
        self._events: deque[Event] = deque()

    def next(self, event: str) -> str:
        """The data of the next event of that name, others before it passed over."""
        while True:
            while not self._events:
                self._events += self._parser.feed(next(self._chunks).encode())
            found = self._events.popleft()
            if found.event == event and found.data is not None:
                return found.data


def test_a_watcher_may_come_before_its_job(gateway: Gateway, http: httpx.Client) -> None:
    """With a stream ticket for a job that nobody has told of."""
    made = http.post("/v1/tickets", json={"use": "stream", "channels": ["jobs:job.early"]}).json()
    with httpx.Client(base_url=gateway.url, trust_env=False) as anybody:
        found = anybody.get("/v1/jobs/early", params={"ticket": made["ticket"]})
        assert found.status_code == 200, found.text
        assert found.json()["job"] == {"job": "early", "state": "pending", "final": False}
        assert found.headers["Ringcast-Poll-Interval"] == "2"
        refused = anybody.get("/v1/jobs/other", params={"ticket": made["ticket"]})
        assert refused.status_code == 403
        with anybody.stream("GET", "/v1/sse", params={"ticket": made["ticket"], "snapshot": "true"}) as stream:
            events = ServerSent(stream.iter_text())
            assert json.loads(events.next("ringcast.welcome"))["channels"][0]["snapshot"] == []
            tell(http, "early", "started")
            assert json.loads(events.next("job"))["data"]["state"] == "started"


@pytest.mark.parametrize(
    ("state", "more", "pace"),
    [("queued", {}, "2"), ("started", {}, "1"), ("retrying", {}, "2"), ("failed", {}, None), ("cancelled", {}, None)],
)
def test_how_often_to_ask_follows_the_phase(http: httpx.Client, state: str, more: Any, pace: str | None) -> None:
    tell(http, f"pace-{state}", state, **more)
    found = ask(http, f"pace-{state}")
    assert found.headers.get("Ringcast-Poll-Interval") == pace
    again = http.get(f"/v1/jobs/pace-{state}", headers={"If-None-Match": found.headers["ETag"]})
    assert (again.status_code, again.headers.get("Ringcast-Poll-Interval")) == (304, pace)
    assert again.headers["ETag"] == found.headers["ETag"]


def test_a_poll_of_jobs_is_told_how_soon_to_come_again_and_when_not_to(http: httpx.Client) -> None:
    def poll(*channels: str, **query: str) -> tuple[str, bool, str]:
        answer = http.get("/v1/poll", params={"channels": ",".join(channels), "wait": "0"} | query)
        assert answer.status_code in (200, 204), answer.text
        body = answer.json() if answer.content else {}
        cursor = answer.headers["Ringcast-Cursor"]
        return answer.headers["Ringcast-Poll-Interval"], body.get("end", False), cursor

    one, two = "jobs:job.soon", "jobs:job.later"
    *begins, cursor = poll(one)
    assert begins == ["0", False]
    tell(http, "soon", "queued")
    assert poll(one, cursor=cursor)[:2] == ("2", False)
    tell(http, "soon", "started")
    assert poll(one, cursor=cursor)[:2] == poll(one, snapshot="true")[:2] == ("1", False)
    assert poll(one, "topic:news", snapshot="true")[:2] == ("0", False), "news are not to wait for jobs"
    *idle, later = poll(one, cursor=poll(one, cursor=cursor)[2])
    assert idle == ["0", False], "nothing is known: at once, for the next poll waits by itself"
    tell(http, "soon", "retrying")
    assert poll(one, cursor=later)[:2] == ("2", False)
    tell(http, "soon", "started", attempt=2)
    tell(http, "soon", "succeeded", attempt=2)
    assert poll(one, cursor=later)[1] is poll(one, snapshot="true")[1] is True
    assert poll(one, two, snapshot="true")[:2] == ("2", False), "of the other one nobody has told yet"
    tell(http, "later", "cancelled")
    assert poll(one, two, snapshot="true")[1] is True
    tell(http, "ends", "succeeded", user="pat")
    assert poll("jobs:pat", snapshot="true")[:2] == ("2", False), "a user's next job may begin at any time"


def test_jobs_are_listed_newest_first_and_by_state(http: httpx.Client) -> None:
    for name, state in (("one", "dead_lettered"), ("two", "started"), ("three", "dead_lettered"), ("four", "failed")):
        tell(http, name, state, user="dan", parent="p" if name == "two" else None)
    listed = http.get("/v1/jobs", params={"user": "dan"}).json()
    assert [job["job"] for job in listed["jobs"]] == ["four", "three", "two", "one"]
    assert decode_cursor(listed["cursor"]) == {"jobs:dan": listed["offset"]}

    def names(**query: str) -> list[str]:
        return [job["job"] for job in http.get("/v1/jobs", params={"user": "dan"} | query).json()["jobs"]]

    assert names(state="dead_lettered") == ["three", "one"]
    assert names(state="started,failed") == ["four", "two"]
    assert names(parent="p") == ["two"]
    refused = http.get("/v1/jobs", params={"user": "dan", "state": "dead"})
    assert (refused.status_code, refused.json()["field"]) == (400, "state")
    assert http.get("/v1/jobs").status_code == 400


def test_the_parts_of_nobodys_job_are_in_its_channel(http: httpx.Client) -> None:
    tell(http, "whole", "started")
    tell(http, "part", "started", parent="whole")
    assert ask(http, "part", parent="whole").json()["channel"] == "jobs:job.whole"
    assert [each["job"] for each in http.get("/v1/jobs", params={"parent": "whole"}).json()["jobs"]] == ["part"]


def test_a_cancellation_without_an_attempt_means_the_one_the_job_is_at(http: httpx.Client) -> None:
    tell(http, "tired", "started", attempt=3)
    assert tell(http, "tired", "cancelled")["job"]["attempt"] == 3
    assert ask(http, "tired").json()["job"]["state"] == "cancelled"
    assert tell(http, "fresh", "cancelled")["job"]["attempt"] == 1


def test_a_forgotten_job_is_gone_and_stays_so(http: httpx.Client) -> None:
    tell(http, "old", "succeeded", user="eve")
    assert http.delete("/v1/jobs/old", params={"user": "eve"}).status_code == 200
    assert ask(http, "old", user="eve").json()["job"]["state"] == "pending"
    late = tell(http, "old", "progress", user="eve", seq=9)
    assert (late["stale"], late["job"]) == (True, None)
    assert http.delete("/v1/jobs/old", params={"user": "eve"}).status_code == 404


def test_a_user_sees_its_own_jobs_and_tells_nothing(gateway: Gateway, http: httpx.Client) -> None:
    tell(http, "mine", "started", user="fay")
    with gateway.http(token("fay")) as fay, gateway.http(token("gus")) as gus:
        assert ask(fay, "mine").json()["job"]["user"] == "fay"
        assert [job["job"] for job in fay.get("/v1/jobs").json()["jobs"]] == ["mine"]
        assert ask(gus, "mine").json()["job"]["state"] == "pending"
        assert gus.get("/v1/jobs/mine", params={"user": "fay"}).status_code == 403
        assert gus.get("/v1/jobs", params={"user": "fay"}).status_code == 403
        assert fay.post("/v1/jobs/mine", json={"state": "cancelled"}).status_code == 403
        assert fay.delete("/v1/jobs/mine").status_code == 403
    tell(http, "nobodys", "started")
    with gateway.http(token("hal", ["jobs:job.*"])) as hal:
        assert ask(hal, "nobodys").json()["job"]["state"] == "started"
    with httpx.Client(base_url=gateway.url, trust_env=False) as nobody:
        assert nobody.get("/v1/jobs/mine").status_code == 401
        assert nobody.post("/v1/jobs/mine", json={"state": "queued"}).status_code == 401


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"state": "done"}, 400, "bad_request"), ({"state": "queued", "user": "job.x"}, 400, "bad_request"),
        ({"state": "queued", "user": "a b"}, 400, "bad_request"), ({"state": "started"}, 400, "bad_request"),
        ({"state": "succeeded", "result": "x" * (64 << 10)}, 413, "too_large"),
        ({"state": "succeeded", "result": "x" * (90 << 10)}, 413, "too_large"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused(http: httpx.Client, body: Any, status: int, code: str) -> None:
    refused = http.post("/v1/jobs/bad", json=body)
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert ask(http, "bad").json()["job"]["state"] == "pending"


def test_a_full_channel_forgets_what_ended_first(http: httpx.Client) -> None:
    for n in range(1000):
        tell(http, f"full-{n}", "succeeded" if n in (3, 5) else "started", user="full")
    tell(http, "full-one-more", "queued", user="full")
    left = {job["job"] for job in http.get("/v1/jobs", params={"user": "full"}).json()["jobs"]}
    assert len(left) == 1000
    assert "full-3" not in left
    assert {"full-5", "full-one-more"} <= left
    tell(http, "full-another", "queued", user="full")
    refused = http.post("/v1/jobs/full-too-many", json={"state": "queued", "user": "full"})
    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_keys")


async def test_what_a_silent_worker_filled_up_is_told_of_without_it(gateway: Gateway, http: httpx.Client) -> None:
    """Its state leaves no room for what is to be said of it."""
    tell(http, "big", "started", lease_ms=100, result="x" * (65_000), error={"message": "x" * 100})

    def lost() -> bool:
        return bool(ask(http, "big").json()["job"].get("reason") == "lost")

    await gateway.until(lost, said="it is not called lost")
    assert "result" not in ask(http, "big").json()["job"]
