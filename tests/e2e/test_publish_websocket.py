"""The `publish` frame on a real gateway: the same checks as over HTTP, answered on the connection it came by."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.typing import Subprotocol

from tests.support.clients import WebSocketClient, connect
from tests.support.gateway import Gateway
from tests.support.keys import bearer, token

PUBLISHER = token("ann", channels=["topic:*"], publish=["topic:*"])


async def answer(client: WebSocketClient, **frame: Any) -> dict[str, Any]:
    await client.send({"type": "publish", "event": "said", "data": 1, **frame})
    return await client.frame("published", "error")


async def opened(gateway: Gateway) -> WebSocketClient:
    client = await connect("websocket", gateway.url, PUBLISHER)
    assert isinstance(client, WebSocketClient)
    return client


def raw(gateway: Gateway) -> connect_websocket:
    return connect_websocket(
        gateway.ws_url + "/v1/ws", additional_headers=bearer(PUBLISHER), subprotocols=[Subprotocol("ringcast.v1")],
        proxy=None,
    )  # fmt: skip


async def closed(websocket: ClientConnection) -> int | None:
    """The code it is closed with."""
    await websocket.wait_closed()
    return websocket.close_code


async def test_a_publish_is_answered_with_its_receipt(gateway: Gateway) -> None:
    async with await opened(gateway) as client:
        first = await answer(client, id=7, channel="topic:ws", message_id="one")
        again = await answer(client, id=8, channel="topic:ws", message_id="one")
        async with gateway.api() as http:
            history = (await http.get("/v1/history", params={"channel": "topic:ws"})).json()["messages"]
    assert (first["type"], first["id"]) == ("published", 7)
    (receipt,) = first["results"]
    assert (receipt["channel"], receipt["id"], receipt["duplicate"]) == ("topic:ws", "one", False)
    assert (again["id"], again["results"]) == (8, [receipt | {"duplicate": True}])
    assert [(message["offset"], message["event"]) for message in history] == [(receipt["offset"], "said")]


@pytest.mark.parametrize(("frame", "code"), [
    ({"channel": "room:a"}, "forbidden"), ({"channel": "jobs:ann"}, "reserved_channel"),
    ({"channel": "no"}, "bad_channel"), ({"channel": "topic:a", "event": "a\nb"}, "bad_event"),
    ({"channel": "topic:a", "message_id": ""}, "bad_request"),
])  # fmt: skip
async def test_a_refusal_names_the_request_and_ends_nothing(gateway: Gateway, frame: dict[str, Any], code: str) -> None:
    async with await opened(gateway) as client:
        refused = await answer(client, id="r1", **frame)
        assert (refused["type"], refused["id"], refused["code"]) == ("error", "r1", code)
        assert refused["message"]
        assert (await answer(client, id="r2", channel="topic:a"))["type"] == "published"


async def test_who_may_not_publish_is_told_so(gateway: Gateway) -> None:
    async with await connect("websocket", gateway.url, token("bob", channels=["topic:*"])) as client:
        assert isinstance(client, WebSocketClient)
        assert (await answer(client, id=1, channel="topic:a"))["code"] == "forbidden"


async def test_data_is_passed_on_as_it_is_written(gateway: Gateway) -> None:
    data = '{"n":18446744073709551616,"t":"\\ud83d\\ude80 \U0001f680\u2028","f":1.10,"l":[ 1 ]}'
    async with raw(gateway) as websocket:
        await websocket.recv()
        await websocket.send('{"type":"publish","id":1,"channel":"topic:raw","data":' + data + "}")
        await websocket.recv()
    async with gateway.api() as http:
        stored = (await http.get("/v1/history", params={"channel": "topic:raw"})).content
    assert b'"data":' + data.encode() + b',"time"' in stored


@pytest.mark.parametrize("data", ["NaN", '"\\ud800"', "[" * 30_000 + "]" * 30_000, "[" * 30_000])
async def test_a_frame_that_is_not_strict_json_ends_the_connection(gateway: Gateway, data: str) -> None:
    async with raw(gateway) as websocket:
        await websocket.recv()
        await websocket.send('{"type":"publish","id":1,"channel":"topic:a","data":' + data + "}")
        assert await closed(websocket) == 4008
