"""CloudEvents 1.0 on /v1/publish, sent by the official SDK in its three content modes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from gateway.message import new_id
from tests.support.gateway import Gateway

DATA = {"order": 7, "text": "zwölf \U0001f680 \"quoted\" 100 %"}
MODES = ("structured", "binary", "batched")


def event(channel: str | None, data: Any = DATA, **attributes: Any) -> CloudEvent:
    given = {"type": "com.example.order.shipped", "source": "/shop/orders", "subject": channel, "id": new_id()}
    return CloudEvent({name: value for name, value in (given | attributes).items() if value is not None}, data)


def batch(*events: CloudEvent) -> HTTPMessage:
    body = b"[" + b",".join(JSONFormat().write(each) for each in events) + b"]"
    return HTTPMessage({"content-type": "application/cloudevents-batch+json"}, body)


def encoded(mode: str, one: CloudEvent) -> HTTPMessage:
    modes: dict[str, Callable[[CloudEvent], HTTPMessage]] = {
        "structured": to_structured_event, "binary": to_binary_event, "batched": batch,
    }  # fmt: skip
    return modes[mode](one)


def post(gateway: Gateway, message: HTTPMessage, **headers: str) -> httpx.Response:
    with gateway.http() as http:
        return http.post("/v1/publish", content=message.body, headers=message.headers | headers)


def held(gateway: Gateway, channel: str) -> list[dict[str, Any]]:
    with gateway.http() as http:
        messages: list[dict[str, Any]] = http.get("/v1/history", params={"channel": channel}).json()["messages"]
    return messages


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("datacontenttype", [None, "application/json", "application/vnd.shop+json"])
def test_an_event_is_a_message_of_its_subject(gateway: Gateway, mode: str, datacontenttype: str | None) -> None:
    channel = f"user:zoë-{new_id()}"
    sent = event(channel, datacontenttype=datacontenttype, traceparent="00-0af7651916cd43dd8448eb211c80319c-01")
    answer = post(gateway, encoded(mode, sent))
    assert answer.status_code == 200, answer.text
    [receipt] = answer.json()["results"]
    [message] = held(gateway, channel)
    assert message["data"] == DATA
    assert (message["event"], message["id"]) == ("com.example.order.shipped", f"/shop/orders {sent.get_id()}")
    assert receipt == {"channel": channel, "offset": message["offset"], "id": message["id"], "duplicate": False}


def test_an_event_repeated_in_any_mode_is_stored_once(gateway: Gateway) -> None:
    channel = f"topic:{new_id()}"
    sent = event(channel, 1)
    told = [post(gateway, encoded(mode, sent)).json()["results"][0] for mode in MODES]
    assert [receipt["duplicate"] for receipt in told] == [False, True, True]
    assert len({receipt["offset"] for receipt in told}) == 1
    again = post(gateway, to_structured_event(event(channel, 2, id=sent.get_id())))
    assert (again.status_code, again.json()["code"]) == (422, "id_reused")
    elsewhere = event(channel, 2, id=sent.get_id(), source="/another")
    assert post(gateway, to_structured_event(elsewhere)).json()["results"][0]["duplicate"] is False
    assert [message["data"] for message in held(gateway, channel)] == [1, 2]


def test_a_source_that_is_too_long_for_an_id_identifies_its_events_all_the_same(gateway: Gateway) -> None:
    channel = f"topic:{new_id()}"
    sent = event(channel, 1, source="https://example.com/" + "deep/" * 100)
    told = [post(gateway, to_binary_event(sent)).json()["results"][0] for _ in range(2)]
    assert [receipt["duplicate"] for receipt in told] == [False, True]


@pytest.mark.parametrize("mode", MODES)
def test_an_event_without_data_says_nothing(gateway: Gateway, mode: str) -> None:
    channel = f"topic:{new_id()}"
    assert post(gateway, encoded(mode, event(channel, None))).status_code == 200
    assert [message["data"] for message in held(gateway, channel)] == [None]


def test_events_of_a_batch_keep_their_order_and_fail_alone(gateway: Gateway) -> None:
    channel = f"topic:{new_id()}"
    events = [event(channel, n) for n in range(150)]
    events[40] = event("jobs:1")
    events[50] = event("nowhere")
    events[60] = event(channel, type="error")
    events[70] = event(None)
    answer = post(gateway, batch(*events))
    results = answer.json()["results"]
    assert (answer.status_code, len(results)) == (200, 150)
    failed = {n: result["error"]["code"] for n, result in enumerate(results) if "error" in result}
    assert failed == {40: "reserved_channel", 50: "bad_channel", 60: "bad_event", 70: "bad_request"}
    assert results[70] == {"channel": "", "error": results[70]["error"]}
    offsets = [result["offset"] for result in results if "error" not in result]
    assert offsets == sorted(set(offsets))
    with gateway.http() as http:
        told = http.get("/v1/history", params={"channel": channel, "since": offsets[-2]}).json()
    assert [message["data"] for message in told["messages"]] == [149]


def structured(**fields: Any) -> HTTPMessage:
    given = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "subject": "topic:refused", "data": 1}
    body = {name: value for name, value in (given | fields).items() if value is not None}
    return HTTPMessage({"content-type": "application/cloudevents+json; charset=utf-8"}, json.dumps(body).encode())


@pytest.mark.parametrize(("message", "status", "code", "sentence"), [
    (structured(specversion=None), 400, "bad_request", "specversion is missing"),
    (structured(specversion="0.3"), 400, "bad_request", "only 1.0"),
    (structured(id=None), 400, "bad_request", "id is missing"),
    (structured(source=""), 400, "bad_request", "source is missing"),
    (structured(source="a b"), 400, "bad_request", "URI reference"),
    (structured(type=None), 400, "bad_request", "type is missing"),
    (structured(subject=None), 400, "bad_request", "subject is missing: it says which channel"),
    (structured(subject=7), 400, "bad_request", "a CloudEvent has the strings"),
    (structured(data=None, data_base64="AAE="), 400, "bad_request", "binary data"),
    (structured(type="ringcast.reset"), 400, "bad_event", "reserved"),
    (structured(subject="presence:user:1"), 403, "reserved_channel", ""),
    (HTTPMessage({"content-type": "application/cloudevents+json"}, b"[]"), 400, "bad_request", ""),
    (HTTPMessage({"content-type": "application/cloudevents-batch+json"}, b"{}"), 400, "bad_request", "an array"),
    (HTTPMessage({"content-type": "application/cloudevents-batch+json"}, b"[" + b"1," * 1000 + b"1]"), 413,
     "too_large", "1000"),
    (to_binary_event(event("topic:refused", "text", datacontenttype="text/plain")), 415, "unsupported_media_type", ""),
    (HTTPMessage({"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-subject": "topic:a%FF"},
                 b"1"), 400, "bad_request", "ce-subject"),
    (HTTPMessage({"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-subject": "topic:a"},
                 b"{NaN}"), 400, "bad_json", ""),
])  # fmt: skip
def test_what_is_no_event_for_a_channel_is_refused(
    gateway: Gateway, message: HTTPMessage, status: int, code: str, sentence: str
) -> None:
    answer = post(gateway, message)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), told
    assert sentence in told["detail"]


def test_an_idempotency_key_beside_an_event_is_refused(gateway: Gateway) -> None:
    answer = post(gateway, structured(), **{"Idempotency-Key": "a"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
