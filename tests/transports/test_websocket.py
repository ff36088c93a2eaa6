"""What only a WebSocket has: frames of the client's, and how those are answered that cannot be."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from websockets.asyncio.client import connect as connect_websocket

from tests.support.clients import Frame, WebSocketClient, connect
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.publishing import publish
from tests.support.raw import RawStream
from tests.transports.conftest import CHANNELS

ANN = token("ann", ["*"])
REQUESTS = 500
WRITER = token("ann", ["*"], ["room:*", "jobs:*"])


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"heartbeat": "1s", "linger": "100ms", "max_channels": 20, "toml": CHANNELS}


async def opened(gateway: Gateway, credential: str = ANN, **wanted: Any) -> WebSocketClient:
    client = await connect("websocket", gateway.url, credential, **wanted)
    assert isinstance(client, WebSocketClient)
    await client.frame("welcome")
    return client


async def ask(client: WebSocketClient, type: str, answer: str, **fields: Any) -> Frame:
    await client.send({"type": type, **fields})
    return await client.frame(answer)


async def test_a_channel_is_subscribed_at_its_live_end(gateway: Gateway) -> None:
    await publish(gateway, "topic:live", ["old"])
    async with await opened(gateway) as client:
        told = await ask(client, "subscribe", "subscribed", id=7, channel="topic:live")
        new = await publish(gateway, "topic:live", ["new"])
        assert set(told) == {"type", "id", "channel", "offset"}
        assert (told["id"], told["channel"]) == (7, "topic:live")
        assert told["offset"] < new[0]
        assert (await client.message())["offset"] == new[0]


async def test_a_channel_is_subscribed_from_an_offset(gateway: Gateway) -> None:
    offsets = await publish(gateway, "topic:from", range(500))
    async with await opened(gateway) as client:
        told = await ask(client, "subscribe", "subscribed", id="a", channel="topic:from", offset=offsets[99])
        assert (told["id"], told["offset"], told["recovered"]) == ("a", offsets[99], True)
        frames = await client.through(offsets[-1])
        assert [frame["offset"] for frame in frames] == offsets[100:]


@pytest.mark.parametrize("ahead", [False, True], ids=["trimmed", "of the future"])
async def test_an_offset_that_cannot_be_shown_is_answered_by_a_reset(gateway: Gateway, ahead: bool) -> None:
    offsets = await publish(gateway, "few:reset", range(30))
    position, at = (offsets[-1] + 10**12, offsets[-1]) if ahead else (offsets[0], offsets[0])
    async with await opened(gateway) as client:
        told = await ask(client, "subscribe", "subscribed", id=1, channel="few:reset", offset=position)
        assert (told["offset"], told["recovered"]) == (at, False)
        reset = await client.receive()
        assert (reset["type"], reset["channel"], reset["offset"]) == ("reset", "few:reset", at)
        live = await publish(gateway, "few:reset", ["live"])
        frames = await client.through(live[0])
        assert [frame["offset"] for frame in frames] == [*([] if ahead else offsets[-10:]), *live]


async def test_a_channel_is_subscribed_since_a_time(gateway: Gateway) -> None:
    offsets = await publish(gateway, "topic:since", range(10))
    async with await opened(gateway) as client:
        told = await ask(client, "subscribe", "subscribed", id=1, channel="topic:since", since="1h")
        assert "recovered" not in told
        assert [frame["offset"] for frame in await client.through(offsets[-1])] == offsets


async def test_a_channel_is_subscribed_with_its_snapshot(gateway: Gateway) -> None:
    for key in "abc":
        await publish(gateway, "table:ws", [key], key=key)
    async with await opened(gateway) as client:
        told = await ask(client, "subscribe", "subscribed", id=1, channel="table:ws", snapshot=True)
        assert [message["key"] for message in told["snapshot"]] == ["a", "b", "c"]
        assert told["offset"] >= told["snapshot"][-1]["offset"]
        new = await publish(gateway, "table:ws", ["b2"], key="b")
        assert (await client.message())["offset"] == new[0]


async def test_a_channel_subscribed_again_starts_where_it_says_now(gateway: Gateway) -> None:
    offsets = await publish(gateway, "topic:again", range(5))
    async with await opened(gateway, channels=["topic:again"]) as client:
        for request, position in enumerate((offsets[0], offsets[3])):
            told = await ask(
                client, "subscribe", "subscribed", id=request, channel="topic:again", offset=position
            )  # fmt: skip
            assert told["id"] == request
            frames = await client.through(offsets[-1])
            assert [frame["offset"] for frame in frames] == [offset for offset in offsets if offset > position]
        assert gateway.metric("ringcast_subscriptions") == 3


async def test_an_unsubscribed_channel_is_silent(gateway: Gateway) -> None:
    async with await opened(gateway, channels=["topic:leave", "topic:stay"]) as client:
        told = await ask(client, "unsubscribe", "unsubscribed", id=3, channel="topic:leave")
        assert told == {"type": "unsubscribed", "channel": "topic:leave", "id": 3}
        await publish(gateway, "topic:leave", [1])
        last = await publish(gateway, "topic:stay", [2])
        assert [frame["channel"] for frame in await client.through(last[0])] == ["topic:stay"]


async def test_subscribing_and_unsubscribing_at_full_speed_ends_where_it_was_asked_to(gateway: Gateway) -> None:
    async with await opened(gateway) as client:
        for request in range(300):
            await client.send({"type": "subscribe", "id": request, "channel": "topic:flip"})
            await client.send({"type": "unsubscribe", "id": request, "channel": "topic:flip"})
        await client.send({"type": "subscribe", "id": "last", "channel": "topic:flip"})
        answers = [await client.frame("subscribed", "unsubscribed") for _ in range(601)]
        asked = [(kind, request) for request in range(300) for kind in ("subscribed", "unsubscribed")]
        assert [(answer["type"], answer["id"]) for answer in answers] == [*asked, ("subscribed", "last")]
        new = await publish(gateway, "topic:flip", [1])
        assert (await client.message())["offset"] == new[0]
        assert gateway.metric("ringcast_subscriptions") == 3


async def test_a_ping_is_answered(gateway: Gateway) -> None:
    async with await opened(gateway) as client:
        await ask(client, "ping", "pong")


async def test_a_token_that_grants_it_publishes(gateway: Gateway) -> None:
    async with await opened(gateway, WRITER, channels=["room:a"]) as client:
        await client.send({"type": "publish", "id": 5, "channel": "room:a", "event": "said", "data": {"text": "hi"}})
        frames = {frame["type"]: frame for frame in [await client.frame("message", "published") for _ in range(2)]}
        receipt = frames["published"]["results"][0]
        assert frames["published"]["id"] == 5
        assert (receipt["channel"], receipt["duplicate"]) == ("room:a", False)
        message = frames["message"]
        assert (message["offset"], message["id"]) == (receipt["offset"], receipt["id"])
        assert (message["event"], message["data"]) == ("said", {"text": "hi"})


async def test_a_repeated_message_id_is_stored_once(gateway: Gateway) -> None:
    async with await opened(gateway, WRITER) as client:
        said = {"channel": "room:once", "data": 1, "message_id": "m-1"}
        first = (await ask(client, "publish", "published", id=1, **said))["results"][0]
        again = (await ask(client, "publish", "published", id=2, **said))["results"][0]
        other = await ask(client, "publish", "error", id=3, **said | {"data": 2})
        assert again == first | {"duplicate": True}
        assert (other["id"], other["code"]) == (3, "id_reused")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"type": "subscribe", "channel": "nonsense"}, "bad_channel"),
        ({"type": "subscribe"}, "bad_channel"),
        ({"type": "subscribe", "channel": "ringcast:nodes"}, "forbidden"),
        ({"type": "subscribe", "channel": "topic:a", "offset": -1}, "bad_cursor"),
        ({"type": "subscribe", "channel": "topic:a", "offset": 2**53}, "bad_cursor"),
        ({"type": "subscribe", "channel": "topic:a", "since": "yesterday"}, "bad_request"),
        ({"type": "unsubscribe", "channel": "topic:never"}, "bad_request"),
        ({"type": "unsubscribe"}, "bad_request"),
        ({"type": "publish", "channel": "topic:a", "data": 1}, "forbidden"),
        ({"type": "publish", "channel": "jobs:ann", "data": 1}, "reserved_channel"),
        ({"type": "publish", "channel": "room:a", "event": "ringcast.ping", "data": 1}, "bad_event"),
        ({"type": "publish", "channel": "room:a", "event": "a\nb", "data": 1}, "bad_event"),
        ({"type": "publish", "channel": "room:a", "data": json.loads("[" * 100 + "]" * 100)}, "too_deep"),
        ({"type": "publish", "data": 1}, "bad_channel"),
        ({"type": "nonsense"}, "bad_request"),
        ({"type": ""}, "bad_request"),
    ],
)
async def test_a_request_that_fails_is_answered_with_its_id(gateway: Gateway, frame: Frame, code: str) -> None:
    """The connection and all its subscriptions stay."""
    async with await opened(gateway, WRITER, channels=["topic:stays"]) as client:
        await client.send(frame | {"id": "the id"})
        error = await client.frame("error")
        assert (error["id"], error["code"]) == ("the id", code)
        assert error["message"]
        live = await publish(gateway, "topic:stays", [1])
        assert (await client.message())["offset"] == live[0]


async def test_publishing_without_a_grant_is_refused(gateway: Gateway) -> None:
    async with await opened(gateway) as client:
        error = await ask(client, "publish", "error", id=1, channel="room:a", data=1)
        assert (error["id"], error["code"]) == (1, "forbidden")


async def test_a_session_has_so_many_channels_and_no_more(gateway: Gateway) -> None:
    async with await opened(gateway, channels=[f"topic:{n}" for n in range(18)]) as client:  # and two of its own
        error = await ask(client, "subscribe", "error", id=1, channel="topic:one-more")
        assert error["code"] == "too_many_channels"
        await ask(client, "unsubscribe", "unsubscribed", id=2, channel="topic:0")
        await ask(client, "subscribe", "subscribed", id=3, channel="topic:one-more")


async def test_fields_that_are_not_known_are_passed_over(gateway: Gateway) -> None:
    """A newer client speaks to an older gateway."""
    async with await opened(gateway) as client:
        await ask(client, "subscribe", "subscribed", id=1, channel="topic:new", priority="high")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nonsense", 4008), ("", 4008), ("[]", 4008), ("null", 4008), ('"ping"', 4008), ("{}", 4008),
        ('{"type":1}', 4008), ('{"type":"ping"', 4008), ('{"type":"subscribe","channel":7}', 4008),
        ('{"type":"subscribe","channel":"topic:a","offset":"1"}', 4008), ('{"type":"ping","id":[1]}', 4008),
        ('{"type":"ping"}{"type":"ping"}', 4008), ("[" * 60_000, 4008),
        (b'{"type":"ping"}', 4008), ('{"type":"ping","x":"' + "x" * 80_000 + '"}', 4009),
        ("x" * 1_000_000, 4009),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
async def test_a_frame_that_is_no_frame_closes_the_connection(gateway: Gateway, text: str | bytes, code: int) -> None:
    """With a goodbye, its cursor, and a sentence."""
    async with await opened(gateway) as client:
        assert client.connection is not None
        await client.connection.send(text)
        assert await client.ended() == code
        assert client.goodbye is not None
        assert (client.goodbye["code"], client.goodbye["reconnect"]) == (code, False)
        assert client.goodbye["hint"]


async def test_a_frame_beyond_all_limits_fails_the_connection(gateway: Gateway) -> None:
    """By the protocol's own code: it is not even held."""
    async with await opened(gateway) as client:
        assert client.connection is not None
        await client.connection.send("x" * 1_100_000)
        assert await client.ended() == 1009


async def test_invalid_utf8_fails_the_connection(gateway: Gateway) -> None:
    async with await opened(gateway) as client:
        assert client.connection is not None
        await client.connection.send(b'{"type":"\xff"}', text=True)
        assert await client.ended() == 1007


async def test_a_frame_in_fragments_is_one_frame(gateway: Gateway) -> None:
    async with await opened(gateway) as client:
        assert client.connection is not None
        await client.connection.send(iter(['{"type"', ':"pi', 'ng"}']))
        await client.frame("pong")


async def test_a_client_that_asks_and_does_not_read_is_not_listened_to(gateway: Gateway) -> None:
    """Its requests wait in its own memory, not in the gateway's; read again, every one is answered."""
    client = await RawStream.open("websocket", gateway.url, ANN, "topic:ask", receive_buffer=4096)
    client.transport.pause_reading()
    before = gateway.resident
    for request in range(REQUESTS):
        client.send(json.dumps({"type": "nonsense", "id": f"{request:060000d}"}))
    await asyncio.sleep(1.0)
    assert gateway.resident - before < 8 << 20, "of the 30 MiB that were sent"
    answers, answered = bytearray(), asyncio.Event()

    def look(data: bytes) -> None:
        answers.extend(data)
        if len(answers) > REQUESTS * 60_000 and answers.count(b'"code":"bad_request"') == REQUESTS:
            answered.set()

    client.look = look  # type: ignore[method-assign]
    client.transport.resume_reading()
    async with asyncio.timeout(30):
        await answered.wait()
    asked = [int(number) for number in re.findall(rb'"id":"0{59990}(\d{10})"', answers)]
    assert asked == list(range(REQUESTS))
    await client.close()


async def test_an_upgrade_without_our_subprotocol_is_served(gateway: Gateway) -> None:
    """A bare `new WebSocket(url)` asks for none."""
    async with connect_websocket(gateway.ws_url + "/v1/ws", proxy=None) as client:
        assert client.subprotocol is None
        await client.send(json.dumps({"type": "connect", "token": ANN}))
        assert json.loads(await client.recv())["type"] == "welcome"


async def test_no_compression_is_agreed(gateway: Gateway) -> None:
    """It would cost each connection more memory than all the rest."""
    async with connect_websocket(gateway.ws_url + "/v1/ws", proxy=None) as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers
