"""Who may connect and what they may read: told apart by status and code, on a live connection too."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import InvalidStatus

from tests.support.clients import Ended, Refused, WebSocketClient, connect, decode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import bearer, token
from tests.support.knock import EXPOSED
from tests.support.publishing import publish

ANN = token("ann", ["*"])
PAGE = "https://app.example.com"


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"jwt_leeway": "0s", "connect_within": "1s", "linger": "100ms", "allowed_origins": [PAGE]}


async def websocket(gateway: Gateway, **wanted: Any) -> WebSocketClient:
    client = await connect("websocket", gateway.url, **wanted)
    assert isinstance(client, WebSocketClient)
    return client


async def refused(transport: str, url: str, credential: str, **wanted: Any) -> Refused:
    with pytest.raises(Refused) as refusal:
        await connect(transport, url, credential, **wanted)
    return refusal.value


def told(refusal: Refused, close: int, status: int, code: str) -> bool:
    """A browser shows scripts no status of a refused WebSocket, so that its code closes a completed handshake."""
    if refusal.status is None:
        return refusal.code == close
    return (refusal.code, refusal.status, refusal.problem["code"]) == (close, status, code)


async def test_an_expired_token_is_refused_as_such(gateway: Gateway, transport: str) -> None:
    refusal = await refused(transport, gateway.url, token("ann", ["*"], expires_in=-1), channels=["topic:a"])
    assert told(refusal, 4200, 401, "token_expired")


@pytest.mark.parametrize("body", [False, True], ids=["handshake", "connect frame"])
async def test_an_expired_token_is_refused_in_a_connect_frame_too(gateway: Gateway, body: bool) -> None:
    refusal = await refused("websocket", gateway.url, token("ann", ["*"], expires_in=-1), body=body)
    assert refusal.code == 4200


async def test_a_connection_ends_with_its_token(gateway: Gateway, transport: str) -> None:
    """By a goodbye that says to come back at once with a new one; from its cursor nothing is missed."""
    channel = f"topic:expires-{transport}"
    short = token("ann", ["*"], expires_in=2)
    async with await connect(transport, gateway.url, short, channels=[channel]) as client:
        await client.joined()
        first = await publish(gateway, channel, ["before"])
        await client.through(first[-1])
        began = time.monotonic()
        assert await client.ended() == 4200
        assert time.monotonic() - began < 4
    if transport != "poll":
        assert client.goodbye is not None
        assert client.goodbye["reconnect"] is True
        assert decode_cursor(client.goodbye["cursor"]) == client.positions
    missed = await publish(gateway, channel, ["after"])
    async with await connect(transport, gateway.url, ANN, channels=[channel], cursor=client.cursor) as client:
        assert [frame["offset"] for frame in await client.through(missed[0])] == missed


async def test_a_poll_that_waits_ends_with_its_token(gateway: Gateway) -> None:
    """It must not bring what comes after: the next one is refused."""
    async with await connect("poll", gateway.url, token("ann", ["*"], expires_in=2), channels=["topic:p"]) as client:
        await client.joined()
        with pytest.raises(Ended) as end:
            await client.message(within=8)
        assert end.value.code == 4200


async def replace(client: WebSocketClient, credential: str) -> dict[str, Any]:
    await client.send({"type": "connect", "token": credential})
    return await client.frame("welcome")


async def test_a_token_is_replaced_in_place(gateway: Gateway) -> None:
    """The connection outlives the one it began with, and its subscriptions go on where they stand."""
    short = token("ann", ["*"], expires_in=2)
    async with await websocket(gateway, token=short, channels=["topic:replace"]) as client:
        await client.joined()
        before = await publish(gateway, "topic:replace", ["before"])
        await client.through(before[0])
        welcome = await replace(client, ANN)
        assert {entry["channel"]: entry["offset"] for entry in welcome["channels"]}["topic:replace"] >= before[0]
        await asyncio.sleep(3.0)  # past the end of the first
        after = await publish(gateway, "topic:replace", ["after"])
        assert [frame["offset"] for frame in await client.through(after[0])] == after


async def test_a_replaced_token_ends_the_connection_in_its_own_time(gateway: Gateway) -> None:
    async with await websocket(gateway, token=ANN) as client:
        await client.joined()
        await replace(client, token("ann", ["*"], expires_in=1.5))
        assert await client.ended() == 4200


async def test_what_the_new_token_does_not_permit_is_unsubscribed(gateway: Gateway) -> None:
    channels = ["topic:kept", "topic:lost"]
    async with await websocket(gateway, token=ANN, channels=channels) as client:
        await client.joined()
        await client.send({"type": "connect", "token": token("ann", ["topic:kept"])})
        assert (await client.frame("unsubscribed"))["channel"] == "topic:lost"
        welcome = await client.frame("welcome")
        assert {entry["channel"] for entry in welcome["channels"]} == {"topic:kept", "user:ann", "jobs:ann"}
        await publish(gateway, "topic:lost", ["not for you"])
        last = await publish(gateway, "topic:kept", ["for you"])
        assert [frame["channel"] for frame in await client.through(last[0])] == ["topic:kept"]
        await client.send({"type": "subscribe", "id": 1, "channel": "topic:lost"})
        assert (await client.frame("error"))["code"] == "forbidden"


@pytest.mark.parametrize(
    ("credential", "code"),
    [("another user's", 4003), ("expired", 4200), ("forged", 4001)],
)
async def test_a_token_that_cannot_replace_it_closes_the_connection(
    gateway: Gateway, credential: str, code: int
) -> None:  # fmt: skip
    made = {
        "another user's": token("ben", ["*"]), "expired": token("ann", ["*"], expires_in=-1),
        "forged": ANN[:-6] + "AAAAAA",
    }  # fmt: skip
    async with await websocket(gateway, token=ANN) as client:
        await client.joined()
        await client.send({"type": "connect", "token": made[credential]})
        assert await client.ended() == code
        assert client.goodbye is not None
        assert client.goodbye["code"] == code


async def test_an_open_connection_takes_a_token_alone(gateway: Gateway) -> None:
    async with await websocket(gateway, token=ANN) as client:
        await client.joined()
        await client.send({"type": "connect", "token": ANN, "channels": ["topic:more"]})
        assert await client.ended() == 4008


@pytest.mark.parametrize("channel", ["topic:other", "user:ben", "jobs:ben", "ringcast:nodes", "ringcast:user.ann"])
async def test_channels_without_permission_are_refused(gateway: Gateway, transport: str, channel: str) -> None:
    mine = token("ann", ["topic:mine", "room:*"])
    refusal = await refused(transport, gateway.url, mine, channels=["topic:mine", channel])
    assert told(refusal, 4003, 403, "forbidden")


async def test_no_pattern_reaches_the_tables_of_the_gateway(gateway: Gateway, transport: str) -> None:
    assert told(
        await refused(transport, gateway.url, ANN, channels=["ringcast:revocations"]), 4003, 403, "forbidden"
    )  # fmt: skip


@pytest.mark.parametrize(
    "channel", ["nonsense", "topic:", ":a", "Topic:a", "topic:a b", "topic:*", "topic:\u202ea", "topic:" + "x" * 201]
)
async def test_malformed_channels_are_refused(gateway: Gateway, transport: str, channel: str) -> None:
    assert told(await refused(transport, gateway.url, ANN, channels=[channel]), 4008, 400, "bad_channel")


async def test_without_credentials_nobody_gets_in(gateway: Gateway, transport: str) -> None:
    if transport == "websocket":
        return  # it may still send a connect frame; the next tests are about that
    assert told(await refused(transport, gateway.url, "", channels=["topic:a"]), 4001, 401, "unauthorised")


async def test_a_websocket_that_says_nothing_is_closed(gateway: Gateway) -> None:
    async with connect_websocket(gateway.ws_url + "/v1/ws", proxy=None) as silent:
        began = time.monotonic()
        await silent.wait_closed()
        assert 0.5 < time.monotonic() - began < 4
        assert silent.close_code == 4001


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"type":"connect"}', 4001), ('{"type":"connect","token":"nonsense"}', 4001), ('{"type":"ping"}', 4001),
        ('{"type":"subscribe","channel":"topic:a"}', 4001), ("nonsense", 4008), ("[]", 4008), ("", 4008),
        (b'{"type":"connect"}', 4008), ('{"type":"connect","token":' + '"x' * 70_000, 4009),
    ],
    ids=["no token", "bad token", "ping", "subscribe", "no JSON", "no object", "empty", "binary", "oversize"],
)  # fmt: skip
async def test_a_first_frame_that_does_not_authenticate_closes_it(
    gateway: Gateway, first: str | bytes, code: int
) -> None:  # fmt: skip
    async with connect_websocket(gateway.ws_url + "/v1/ws", proxy=None) as client:
        await client.send(first)
        await client.wait_closed()
        assert client.close_code == code
        assert client.close_reason, "a sentence says what to do"


async def test_a_page_of_a_foreign_origin_is_refused(gateway: Gateway) -> None:
    """Before the handshake is completed: nothing of the gateway answers such a page."""
    with pytest.raises(InvalidStatus) as refusal:
        async with connect_websocket(
            gateway.ws_url + "/v1/ws", origin="https://evil.example",  # type: ignore[arg-type]
            additional_headers=bearer(ANN), proxy=None,
        ):  # fmt: skip
            pass
    assert refusal.value.response.status_code == 403


@pytest.mark.parametrize("origin", [PAGE, None])
async def test_a_page_of_an_allowed_origin_is_let_in(gateway: Gateway, transport: str, origin: str | None) -> None:
    headers = {"Origin": origin or gateway.url}
    async with await connect(transport, gateway.url, ANN, channels=["topic:a"], headers=headers) as client:
        await client.joined()


@pytest.mark.parametrize("path", ["sse", "poll"])
async def test_pages_of_allowed_origins_may_read_the_headers_that_matter(gateway: Gateway, path: str) -> None:
    async with gateway.api(ANN) as http:
        async with http.stream("GET", f"/v1/{path}?channels=topic:a", headers={"Origin": PAGE}) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            exposed = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
            assert exposed == EXPOSED
        foreign = {"Origin": "https://evil.example"}
        async with http.stream("GET", f"/v1/{path}?channels=topic:a", headers=foreign) as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_token_travels_as_a_subprotocol(gateway: Gateway) -> None:
    """For browsers, which let scripts set no header; it is never the one that is chosen."""
    async with connect_websocket(
        gateway.ws_url + "/v1/ws", subprotocols=["ringcast.v1", f"bearer.{ANN}"], proxy=None,  # type: ignore[list-item]
    ) as client:  # fmt: skip
        assert client.subprotocol == "ringcast.v1"
        assert '"type":"welcome"' in str(await client.recv())


async def test_a_ticket_opens_each_transport(gateway: Gateway, transport: str) -> None:
    """Once, and for what the token that asked for it may read."""
    async with gateway.api(ANN) as http:
        answer = await http.post("/v1/tickets", json={"use": "connect"})
    ticket = answer.raise_for_status().json()["ticket"]
    query = f"channels=topic:a&ticket={ticket}"
    for accepted in (True, False):
        if transport == "websocket":
            async with connect_websocket(f"{gateway.ws_url}/v1/ws?{query}", proxy=None) as client:
                if accepted:
                    assert '"type":"welcome"' in str(await client.recv())
                else:
                    await client.wait_closed()
                    assert client.close_code == 4001
        else:
            async with gateway.api("") as http:
                del http.headers["Authorization"]
                async with http.stream("GET", f"/v1/{transport}?{query}") as answer:
                    assert answer.status_code == (200 if accepted else 401)
