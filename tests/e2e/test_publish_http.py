"""POST /v1/publish on a real gateway: 200 means stored, and what arrives is what was sent, byte for byte."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect as connect_websocket
from websockets.typing import Subprotocol

from tests.support.gateway import Gateway
from tests.support.keys import bearer, token

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"toml": "[channels.room]\nkeyed = true\nmax_keys = 2", "max_targets": 10}


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as http:
        yield http


def publish(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/publish", json=body)


def receipt(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = publish(http, **body)
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    return dict(result)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem of a refusal, checked against RFC 9457 and the status it came with."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = response.json()
    assert (told["status"], told["code"], told["type"]) == (status, code, "about:blank")
    assert told["title"]
    assert told["detail"]
    assert told["detail"] != told["title"]
    return told


def history(http: httpx.Client, channel: str) -> list[dict[str, Any]]:
    response = http.get("/v1/history", params={"channel": channel})
    assert response.status_code == 200, response.text
    return list(response.json()["messages"])


def test_an_acknowledged_publish_is_stored(http: httpx.Client) -> None:
    for number in range(20):
        told = receipt(http, channel="topic:stored", event="tick", data={"n": number})
        last = history(http, "topic:stored")[-1]
        assert last["offset"] == told["offset"]
        assert (last["id"], last["event"], last["data"]) == (told["id"], "tick", {"n": number})
        assert not told["duplicate"]
    offsets = [message["offset"] for message in history(http, "topic:stored")]
    assert offsets == sorted(set(offsets))


# ---------------------------------------------------------------- idempotency


def test_a_repeated_id_is_answered_with_the_first_offset(http: httpx.Client) -> None:
    first = receipt(http, channel="topic:again", data=1, id="order-7")
    again = receipt(http, channel="topic:again", data=1, id="order-7")
    assert again == first | {"duplicate": True}
    header = {"Idempotency-Key": "order-7"}
    by_header = http.post("/v1/publish", json={"channel": "topic:again", "data": 1}, headers=header)
    assert by_header.json()["results"] == [again]
    assert len(history(http, "topic:again")) == 1


@pytest.mark.parametrize("other", [{"data": 2}, {"data": 1, "event": "other"}])
def test_the_same_id_with_another_body_is_refused(http: httpx.Client, other: dict[str, Any]) -> None:
    channel = f"topic:reused-{len(other)}"
    receipt(http, channel=channel, data=1, id="one")
    problem(publish(http, channel=channel, id="one", **other), 422, "id_reused")
    assert len(history(http, channel)) == 1


def test_ids_belong_to_their_publisher_and_channel(gateway: Gateway, http: httpx.Client) -> None:
    first = receipt(http, channel="topic:scope", data=1, id="same")
    assert not receipt(http, channel="topic:scope2", data=1, id="same")["duplicate"]
    with gateway.http(token("ann", publish=["topic:*"])) as ann:
        second = receipt(ann, channel="topic:scope", data=1, id="same")
    assert not second["duplicate"]
    assert second["offset"] > first["offset"]


def test_the_header_must_be_clear(http: httpx.Client) -> None:
    body = {"channel": "topic:header", "data": 1, "id": "a"}
    assert http.post("/v1/publish", json=body, headers={"Idempotency-Key": "a"}).status_code == 200
    for values in ([b"b"], [b"\xc3\xa9"], [b"a", b"a"], [b""]):
        headers = [(b"Idempotency-Key", value) for value in values]
        problem(http.post("/v1/publish", json=body, headers=headers), 400, "bad_request")


# ---------------------------------------------------------------- many targets


def test_each_target_is_told_what_became_of_it(http: httpx.Client) -> None:
    receipt(http, channel="topic:part", data="other", id="p1")
    channels = ["topic:ok", "topic:part", "jobs:1", "nonsense", "topic:fine", "topic:ok"]
    response = publish(http, channels=channels, data=1, id="p1")
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["channel"] for result in results] == channels[:-1]  # named twice, published once
    codes = [result.get("error", {}).get("code") for result in results]
    assert codes == [None, "id_reused", "reserved_channel", "bad_channel", None]
    assert [result["error"]["status"] for result in results if "error" in result] == [422, 403, 400]
    for channel in ("topic:ok", "topic:fine"):
        assert [message["data"] for message in history(http, channel)] == [1]


def test_users_are_channels(http: httpx.Client) -> None:
    results = publish(http, users=["1", "2"], data=1).json()["results"]
    assert [result["channel"] for result in results] == ["user:1", "user:2"]
    assert results[0]["id"] == results[1]["id"]


def test_one_target_that_fails_is_the_answer(http: httpx.Client) -> None:
    problem(publish(http, channel="jobs:1", data=1), 403, "reserved_channel")
    problem(publish(http, channels=["ringcast:nodes"], data=1), 403, "reserved_channel")


# ---------------------------------------------------------------- keys


def test_keys_replace_each_other_in_the_order_of_their_versions(http: httpx.Client) -> None:
    assert receipt(http, channel="room:v", key="a", version=[1, 5], data="old")
    problem(publish(http, channel="room:v", key="a", version=[1, 5], data="same"), 409, "stale_version")
    problem(publish(http, channel="room:v", key="a", version=[1, 4, 9], data="older"), 409, "stale_version")
    assert receipt(http, channel="room:v", key="a", version=[2], data="new")
    snapshot = http.get("/v1/snapshot", params={"channel": "room:v"}).json()
    assert [(m["key"], m["version"], m["data"]) for m in snapshot["snapshot"]] == [("a", [2], "new")]
    assert receipt(http, channel="room:v", key="a", version=[3], deleted=True)
    assert http.get("/v1/snapshot", params={"channel": "room:v"}).json()["snapshot"] == []


def test_a_channel_holds_as_many_keys_as_its_policy_says(http: httpx.Client) -> None:
    for key in ("a", "b", "a"):
        receipt(http, channel="room:full", key=key, data=1)
    problem(publish(http, channel="room:full", key="c", data=1), 409, "too_many_keys")


def test_a_key_elsewhere_is_told_which_setting_allows_it(http: httpx.Client) -> None:
    told = problem(publish(http, channel="topic:k", key="a", data=1), 400, "key_not_allowed")
    assert "[channels.topic] keyed = true" in told["detail"]


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(("body", "status", "code"), [
    ({"channel": "nonsense", "data": 1}, 400, "bad_channel"),
    ({"channel": "topic:" + "x" * 201, "data": 1}, 400, "bad_channel"),
    ({"channel": "topic:a b", "data": 1}, 400, "bad_channel"),
    ({"user": "a,b", "data": 1}, 400, "bad_channel"),
    ({"channel": "topic:a", "event": "a\nb", "data": 1}, 400, "bad_event"),
    ({"channel": "topic:a", "event": "a\r\ndata: x", "data": 1}, 400, "bad_event"),
    ({"channel": "topic:a", "event": "ringcast.reset", "data": 1}, 400, "bad_event"),
    ({"channel": "topic:a", "event": "x" * 201, "data": 1}, 400, "bad_event"),
    ({"channel": "topic:a", "data": "x" * 65536}, 413, "too_large"),
    ({"users": [str(n) for n in range(11)], "data": 1}, 400, "too_many_channels"),
    ({"channel": "topic:a", "user": "1", "data": 1}, 400, "bad_request"),
    ({"channel": "topic:a", "data": 1, "bogus": 1}, 400, "bad_request"),
    ({"channel": "topic:a"}, 400, "bad_request"),
    ({"channel": "topic:a", "data": 1, "id": "x" * 201}, 400, "bad_request"),
])  # fmt: skip
def test_limits_are_clear_problems(http: httpx.Client, body: dict[str, Any], status: int, code: str) -> None:
    problem(http.post("/v1/publish", json=body), status, code)


@pytest.mark.parametrize(("raw", "status", "code"), [
    (b'{"channel":"topic:a","data":NaN}', 400, "bad_json"),
    (b'{"channel":"topic:a","data":"\xff"}', 400, "bad_json"),
    (b'{"channel":"topic:a","data":"\\ud800"}', 400, "bad_json"),
    (b'{"channel":"topic:a","data":{"\\udc00":1}}', 400, "bad_json"),
    (b'\xef\xbb\xbf{"channel":"topic:a","data":1}', 400, "bad_json"),
    (b'{"channel":"topic:a","data":1} {}', 400, "bad_json"),
    (b'{"channel":"topic:a","data":' + b"[" * 65 + b"]" * 65 + b"}", 400, "too_deep"),
    (b'{"channel":"topic:a","data":' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400, "too_deep"),
    (b"", 400, "bad_json"),
    (b" " * 300_000, 413, "too_large"),
])  # fmt: skip
def test_what_is_not_strict_json_is_a_clear_problem(http: httpx.Client, raw: bytes, status: int, code: str) -> None:
    problem(http.post("/v1/publish", content=raw, headers=JSON), status, code)


def test_a_bomb_of_brackets_is_refused_at_once(http: httpx.Client) -> None:
    began = time.monotonic()
    problem(http.post("/v1/publish", content=b"[" * 90_000, headers=JSON), 400, "bad_request")
    problem(http.post("/v1/publish", content=b'{"data":' + b"[" * 90_000, headers=JSON), 400, "too_deep")
    assert time.monotonic() - began < 2


def test_a_body_without_an_announced_length_is_bounded_too(http: httpx.Client) -> None:
    chunks = (b"x" * 10_000 for _ in range(1000))
    problem(http.post("/v1/publish", content=chunks, headers=JSON), 413, "too_large")


def test_content_types(http: httpx.Client) -> None:
    raw = b'{"channel":"topic:types","data":1}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        refused = http.post("/v1/publish", content=raw, headers={"Content-Type": kind})
        assert "application/json" in problem(refused, 415, "unsupported_media_type")["detail"]
    refused = http.post("/v1/publish", content=raw, headers=JSON | {"Content-Encoding": "gzip"})
    problem(refused, 415, "unsupported_media_type")
    assert http.post("/v1/publish", content=raw).status_code == 200
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert http.post("/v1/publish", content=raw, headers=charset).status_code == 200


# ---------------------------------------------------------------- who may


def test_publishing_needs_a_grant(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url, trust_env=False) as nobody:
        refusal = publish(nobody, channel="topic:a", data=1)
        problem(refusal, 401, "unauthorised")
        assert refusal.headers["www-authenticate"] == "Bearer"
    with gateway.http(token("ann", channels=["*"])) as reader:
        problem(publish(reader, channel="topic:a", data=1), 403, "forbidden")
    with gateway.http(token("ann", publish=["room:1", "topic:a*"])) as ann:
        assert publish(ann, channel="topic:ab", data=1).status_code == 200
        problem(publish(ann, channel="topic:b", data=1), 403, "forbidden")
        problem(publish(ann, channel="user:ann", data=1), 403, "forbidden")
        results = publish(ann, channels=["topic:a", "topic:b"], data=1).json()["results"]
        assert [result.get("error", {}).get("code") for result in results] == [None, "forbidden"]
    with gateway.http(token("ann", publish=["*"])) as anywhere:
        problem(publish(anywhere, channel="jobs:ann", data=1), 403, "reserved_channel")


# ---------------------------------------------------------------- byte for byte

PAYLOADS = [
    '"\U0001f680 \u2028\u2029 \u0085 \u00e9 \ufeff"'.encode(), b'"\\ud83d\\ude80\\u2028\\n\\u0000"',
    b'{"\\ud83d\\ude80":"\\/"}', b"9223372036854775807", b"18446744073709551616", b"123456789012345678901234567890",
    b"-0", b"1.10", b"1E+2", b"1e400", b'{"b":1,"a":2,"b":3}', b"[ 1 ,\t2 ]", b'"\x7f"', b"null", b'""',
    b'"data: x\\n\\nevent: y"', b'{"type":"reset"}',
]  # fmt: skip


async def over_websocket(gateway: Gateway) -> AsyncIterator[bytes]:
    url = gateway.ws_url + "/v1/ws?channels=topic:bytes&since=earliest"
    protocols = [Subprotocol("ringcast.v1")]
    async with connect_websocket(url, additional_headers=bearer(), subprotocols=protocols, proxy=None) as websocket:
        async for frame in websocket:
            yield frame.encode() if isinstance(frame, str) else frame


async def over_sse(gateway: Gateway) -> AsyncIterator[bytes]:
    query = {"channels": "topic:bytes", "since": "earliest"}
    async with gateway.api() as http, http.stream("GET", "/v1/sse", params=query) as response:
        rest = b""
        async for chunk in response.aiter_raw():
            *lines, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line


async def over_poll(gateway: Gateway) -> AsyncIterator[bytes]:
    query = {"channels": "topic:bytes", "since": "earliest", "wait": "0"}
    async with gateway.api() as http:
        while True:
            response = await http.get("/v1/poll", params=query)
            assert response.status_code == 200, response.text
            yield response.content
            query = {"channels": "topic:bytes", "cursor": response.json()["cursor"], "wait": "25"}


@pytest.mark.parametrize("transport", [over_websocket, over_sse, over_poll])
async def test_data_arrives_byte_for_byte(gateway: Gateway, transport: Any) -> None:
    async with gateway.api() as http:
        for number, payload in enumerate(PAYLOADS):
            raw = '{"channel":"topic:bytes","id":"%d","event":"é \u2028","data":'.encode() % number + payload + b"}"
            assert (await http.post("/v1/publish", content=raw, headers=JSON)).status_code == 200
    wanted = [b'"data":%b,"time":' % payload for payload in PAYLOADS]
    seen = b""
    frames = transport(gateway)
    async for frame in frames:
        seen += frame
        if wanted[-1] in frame:
            break
    await frames.aclose()
    position = 0
    for expected in wanted:
        assert expected in seen[position:], expected
        position = seen.index(expected, position) + len(expected)
    assert seen.count('"event":"é \u2028"'.encode()) == len(PAYLOADS)


def test_a_line_break_between_tokens_becomes_a_space(http: httpx.Client) -> None:
    raw = b'{"channel":"topic:pretty",\n"data":{\r\n\t"a": [\n1]}}'
    assert http.post("/v1/publish", content=raw, headers=JSON).status_code == 200
    answer = http.get("/v1/history", params={"channel": "topic:pretty"})
    assert b'"data":{  \t"a": [ 1]},"time"' in answer.content
    assert json.loads(answer.content)["messages"][0]["data"] == {"a": [1]}
