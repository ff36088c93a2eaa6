"""The rest of the HTTP interface on a real gateway: history, snapshots, tickets, and what operators ask."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, token

TOML = """
[channels.room]
keyed = true

[channels.short]
history_size = 5
"""


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"toml": TOML, "page_messages": 10, "page_bytes": "64KiB"}


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as http:
        yield http


def code(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return response.status_code, response.json()["code"]


def fill(http: httpx.Client, channel: str, count: int, text: str = "") -> list[int]:
    lines = "\n".join(json.dumps({"channel": channel, "data": {"n": n, "text": text}}) for n in range(count))
    answers = http.post("/v1/publish", content=lines, headers={"Content-Type": "application/x-ndjson"})
    return [json.loads(line)["results"][0]["offset"] for line in answers.text.splitlines()]


def history(http: httpx.Client, channel: str, **query: Any) -> dict[str, Any]:
    response = http.get("/v1/history", params={"channel": channel, **query})
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return dict(response.json())


# ---------------------------------------------------------------- history and snapshots


@pytest.mark.parametrize("text", ["", "x" * 10_000])  # pages end by their number of messages, or by their bytes
def test_history_is_read_page_by_page(http: httpx.Client, text: str) -> None:
    channel = f"topic:pages-{len(text)}"
    offsets = fill(http, channel, 25, text)
    seen: list[int] = []
    since: str | int = "earliest"
    while True:
        page = history(http, channel, since=since)
        assert page["channel"] == channel
        assert "reset" not in page
        assert 0 < len(page["messages"]) <= 10
        seen += [message["offset"] for message in page["messages"]]
        since = page["offset"]
        if not page["more"]:
            break
        assert since == seen[-1]
    assert seen == offsets
    assert history(http, channel, since=since)["messages"] == []


def test_history_takes_a_limit_and_a_time(http: httpx.Client) -> None:
    offsets = fill(http, "topic:limit", 5)
    page = history(http, "topic:limit", limit=2)
    assert ([message["offset"] for message in page["messages"]], page["more"]) == (offsets[:2], True)
    assert len(history(http, "topic:limit", since="1h")["messages"]) == 5
    assert len(history(http, "topic:limit", since="2020-01-01T00:00:00Z")["messages"]) == 5
    latest = history(http, "topic:limit", since="latest")
    assert latest["messages"] == []
    assert latest["offset"] >= offsets[-1]


def test_a_position_that_cannot_be_proven_is_answered_with_a_reset(http: httpx.Client) -> None:
    offsets = fill(http, "short:trimmed", 10)
    assert history(http, "short:trimmed", since=offsets[0])["reset"] == {"reason": "trimmed", "offset": offsets[0]}
    assert "reset" not in history(http, "short:trimmed", since=offsets[5])
    assert history(http, "short:trimmed", since=7)["reset"]["reason"] == "lost"
    future = history(http, "short:trimmed", since=2**53 - 1)
    assert future["reset"]["reason"] == "unknown"
    assert future["messages"] == []


@pytest.mark.parametrize("query", [
    {"limit": 0}, {"limit": 11}, {"limit": "x"}, {"limit": "9" * 5000}, {"since": "soon"}, {"since": 2**53},
    {"since": "9" * 5000}, {"since": "-1"}, {"since": ""},
])  # fmt: skip
def test_malformed_queries_are_refused(http: httpx.Client, query: dict[str, Any]) -> None:
    assert code(http.get("/v1/history", params={"channel": "topic:a", **query})) == (400, "bad_request")


@pytest.mark.parametrize("path", ["/v1/history", "/v1/snapshot"])
def test_reading_needs_a_channel_and_a_right(gateway: Gateway, http: httpx.Client, path: str) -> None:
    assert code(http.get(path)) == (400, "bad_request")
    assert code(http.get(path, params={"channel": "nonsense"})) == (400, "bad_channel")
    assert code(http.get(path, params={"channel": "ringcast:tickets"})) == (403, "forbidden")
    assert code(httpx.get(gateway.url + path, params={"channel": "topic:a"}, trust_env=False)) == (401, "unauthorised")
    with gateway.http(token("ann", channels=["topic:a"])) as ann:
        for channel in ("topic:a", "user:ann"):
            assert ann.get(path, params={"channel": channel}).status_code == 200
        for channel in ("topic:b", "user:bob"):
            assert code(ann.get(path, params={"channel": channel})) == (403, "forbidden")


def test_a_snapshot_is_the_newest_value_of_each_key(http: httpx.Client) -> None:
    for key, data in (("a", 1), ("b", 2), ("a", 3)):
        told = http.post("/v1/publish", json={"channel": "room:s", "key": key, "data": data}).json()["results"][0]
    snapshot = http.get("/v1/snapshot", params={"channel": "room:s"}).json()
    assert [(message["key"], message["data"]) for message in snapshot["snapshot"]] == [("b", 2), ("a", 3)]
    assert snapshot["offset"] == told["offset"]
    empty = http.get("/v1/snapshot", params={"channel": "topic:unkeyed"}).json()
    assert empty["snapshot"] == []


def test_a_large_snapshot_arrives_whole(http: httpx.Client) -> None:
    keys = [f"k{n}" for n in range(100)]
    for key in keys:
        http.post("/v1/publish", json={"channel": "room:large", "key": key, "data": key * 5000})
    snapshot = http.get("/v1/snapshot", params={"channel": "room:large"}).json()["snapshot"]
    assert [message["key"] for message in snapshot] == keys
    assert all(message["data"] == message["key"] * 5000 for message in snapshot)


# ---------------------------------------------------------------- tickets


def poll(gateway: Gateway, ticket: str, **query: str) -> httpx.Response:
    return httpx.get(f"{gateway.url}/v1/poll", params={"ticket": ticket, "wait": "0", **query}, trust_env=False)


def test_a_connect_ticket_opens_one_connection(gateway: Gateway, http: httpx.Client) -> None:
    made = http.post("/v1/tickets", json={"use": "connect", "user": "ann", "channels": ["topic:*"]})
    assert made.status_code == 200, made.text
    assert made.headers["cache-control"] == "no-store"
    ticket = made.json()["ticket"]
    first = poll(gateway, ticket, channels="topic:a")
    assert first.status_code == 200, first.text
    assert code(poll(gateway, ticket, channels="topic:a")) == (401, "unauthorised")


def test_a_stream_ticket_reads_its_channels_until_it_expires(gateway: Gateway) -> None:
    with gateway.http(token("ann", channels=["topic:*"])) as ann:
        made = ann.post("/v1/tickets", json={"use": "stream", "channels": ["topic:a"], "ttl": "1m"}).json()
        assert code(ann.post("/v1/tickets", json={"use": "stream", "channels": ["room:a"]})) == (403, "forbidden")
        assert code(ann.post("/v1/tickets", json={"use": "connect", "user": "bob"})) == (403, "forbidden")
    for _ in range(2):
        assert poll(gateway, made["ticket"], channels="topic:a").status_code == 200
    assert code(poll(gateway, made["ticket"], channels="topic:b")) == (403, "forbidden")
    published = httpx.post(
        f"{gateway.url}/v1/publish", params={"ticket": made["ticket"]}, json={"channel": "topic:a", "data": 1},
        trust_env=False,
    )  # fmt: skip
    assert code(published) == (403, "forbidden")


# ---------------------------------------------------------------- what operators ask


def test_it_lives_and_is_ready(gateway: Gateway) -> None:
    for path in ("/livez", "/readyz"):
        assert httpx.get(gateway.url + path, trust_env=False).status_code == 200


def test_metrics_are_for_api_keys(gateway: Gateway, http: httpx.Client) -> None:
    assert code(httpx.get(gateway.url + "/metrics", trust_env=False)) == (401, "unauthorised")
    with gateway.http(token("ann", channels=["*"], publish=["*"])) as ann:
        assert code(ann.get("/metrics")) == (403, "forbidden")
    before = gateway.metric("ringcast_published_total", result="stored")
    duplicates = gateway.metric("ringcast_published_total", result="duplicate")
    for _ in range(2):
        http.post("/v1/publish", json={"channel": "topic:counted", "data": 1, "id": "once"})
    assert gateway.metric("ringcast_published_total", result="stored") == before + 1
    assert gateway.metric("ringcast_published_total", result="duplicate") == duplicates + 1
    assert gateway.metric("ringcast_publish_seconds_count") >= before + 1
    refused = gateway.metric("ringcast_refusals_total", code="bad_channel")
    assert http.post("/v1/publish", json={"channel": "nonsense", "data": 1}).status_code == 400
    assert gateway.metric("ringcast_refusals_total", code="bad_channel") == refused + 1
    assert gateway.metric("ringcast_broker_connected") == 1
    assert 0 < gateway.metric("ringcast_idempotency_used_bytes") < gateway.metric("ringcast_idempotency_limit_bytes")


def test_everything_else_is_a_problem_too(http: httpx.Client) -> None:
    assert code(http.get("/v1/nothing")) == (404, "not_found")
    refused = http.get("/v1/publish")
    assert code(refused) == (405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"
    assert code(http.delete("/livez")) == (405, "method_not_allowed")


def test_the_document_names_what_is_there_and_nothing_else(gateway: Gateway, http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method in ("get", "post", "put", "delete"):
            credential = "nobody's" if path == "/v1/sse" else API_KEY  # which would answer without end
            with gateway.http(credential) as asking:
                answer = asking.request(method, path.replace("{id}", "nobodys"), params={"wait": "0"})
            status = answer.status_code
            if path == "/v1/ws":
                assert status in (404, 405), path  # there is no page behind a WebSocket
            else:
                assert (status == 405) != (method in operations), (method, path, status)
                assert status != 404 or "holds no such" in answer.json()["detail"], path


async def test_too_many_requests_are_told_when_to_come_back() -> None:
    async with Gateway(requests_per_second=5) as gateway, gateway.api() as http:
        began = time.monotonic()
        answers = [await http.post("/v1/publish", json={"channel": "topic:a", "data": 1}) for _ in range(20)]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        for answer in refused:
            assert code(answer) == (429, "rate_limited")
            assert int(answer.headers["retry-after"]) >= 1
        assert len(answers) - len(refused) <= 6 + 5 * (time.monotonic() - began)
        assert (await http.get("/readyz")).status_code == 200  # a probe is never limited
