"""docs/observability.md is true: what it names is there, and what is there it names."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.logs import FIELDS
from tests.support.clients import Refused, connect
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.monitoring import PAGE, named

LOGS = PAGE.partition("\n## Logs\n")[2].partition("\n## ")[0]
FIELD = re.compile(r"^\| `(\w+)` \| ", re.MULTILINE)
LOGGED = ("time", "level", "logger", "message", "node", "exception", *FIELDS)
FOREIGN = ("process_", "python_")  # of the Prometheus client: the page names them as a whole


async def test_every_metric_is_named_and_every_named_metric_is_there(gateway: Gateway) -> None:
    """By a scrape after some traffic, for a labelled counter has no sample before its first event."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    async with await connect("websocket", gateway.url, token("ann", ["topic:*"]), channels=["topic:a"]) as client:
        await client.joined()
        await asyncio.to_thread(gateway.publish, "topic:a", 1)
        await client.messages(1)
        async with gateway.api() as http:
            assert (await http.get("/v1/history?channel=wrong")).status_code == 400
            text = (await http.get("/metrics")).text
    assert gateway.metric("ringcast_delivery_seconds_count") == gateway.metric("ringcast_fanout_seconds_count") > 0
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(FOREIGN):
            labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
            found[family.name + ("_total" if family.type == "counter" else "")] = (family.type, labels)
    silent = {"ringcast_resumes_total", "ringcast_resets_total", "ringcast_closes_total"}  # nothing of it happened
    assert named().keys() == found.keys()
    for name, (kind, labels) in named().items():
        assert found[name] == (kind, frozenset() if name in silent else labels), name


async def test_every_field_of_the_logs_is_named_and_every_named_field_is_there() -> None:
    """But `exception`: nothing fails here, and what a failure looks like `tests/unit/test_logs.py` shows."""
    ann, past = token("ann", ["topic:*"]), token("ann", ["topic:*"], expires_in=-3600)
    with Gateway(log_format="json", access_log=True, node="n1") as gateway:
        async with gateway.api() as http:
            left = await connect("sse", gateway.url, ann)
            await left.joined()
            await left.cut()
            ended = await connect("websocket", gateway.url, ann, channels=["topic:a"])
            session = (await ended.frame("welcome"))["session"]
            assert (await http.post("/v1/disconnect", json={"user": "ann", "code": "forbidden"})).status_code == 200
            assert await ended.ended() == 4003
            with pytest.raises(Refused):
                await connect("sse", gateway.url, past)
            assert (await http.get("/v1/jobs/secret?user=ann")).status_code == 200
            assert (await http.get("/secret?and=more")).status_code == 404
        assert gateway.stop() == 0
        logged = gateway.stderr
    lines = [json.loads(line) for line in logged.splitlines()]
    access = [line for line in lines if line["logger"] == "ringcast.access"]
    assert {line["node"] for line in lines} == {"n1"}
    assert {field for line in lines for field in line} | {"exception"} == set(FIELD.findall(LOGS)) == set(LOGGED)
    reasons = {line["reason"]: line.get("code") for line in access if "reason" in line}
    assert reasons == {"left": None, "forbidden": 4003, "token_expired": 4200}
    assert [line["code"] for line in access if line.get("session") == session] == [4003]
    answered = [(line.get("path"), line["status"]) for line in access if "status" in line]
    assert answered == [("/v1/disconnect", 200), ("/v1/jobs/{id}", 200), (None, 404)]
    assert "secret" not in logged


def test_no_access_is_logged_unless_it_is_asked_for(gateway: Gateway) -> None:
    gateway.publish("topic:a", 1)
    assert "ringcast.access" not in gateway.stderr
