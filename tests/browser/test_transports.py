"""The client's transports: down when one is blocked, back up when it is not, and each message once all the while."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.browser.conftest import RESOURCE_403, RESOURCE_504, RESOURCE_FAILED, WEBSOCKET_FAILED, Visits
from tests.browser.subscriber import steadily, subscribe
from tests.support.clients import encode_cursor
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, token
from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

ODD_KEY = "a-key/that=holds+what@nosubprotocol;may"
TRANSPORTS = ["websocket", "sse", "longpoll", "poll"]
BROKEN = (WEBSOCKET_FAILED, RESOURCE_FAILED, RESOURCE_403)


@pytest.fixture(scope="module")
def gateway_settings(gateway_settings: dict[str, Any]) -> dict[str, Any]:
    return gateway_settings | {"api_keys": [API_KEY, ODD_KEY]}


@pytest.fixture
def channel(request: pytest.FixtureRequest) -> str:
    """A channel of this test alone."""
    name: str = request.node.name
    return "topic:" + name.replace("[", "-").rstrip("]")


async def test_a_handshake_that_hangs_is_a_blocked_websocket(proxy: Proxy, channel: str, visit: Visits) -> None:
    proxy.stall("/v1/ws")
    here = await subscribe(visit, proxy.url, channels=[channel], allow=BROKEN)
    await here.open("sse")
    assert await here.transports() == ["websocket", "sse"]


async def test_an_event_stream_that_is_buffered_is_blocked(
    proxy: Proxy, gateway: Gateway, channel: str, visit: Visits
) -> None:
    proxy.block("/v1/ws")
    proxy.buffer("/v1/sse")
    here = await subscribe(visit, proxy.url, channels=[channel], allow=BROKEN)
    await here.open("longpoll")
    await asyncio.to_thread(gateway.publish, channel, 1)
    await here.got(1)
    assert await here.transports() == ["websocket", "sse", "longpoll"]


async def test_where_held_requests_are_cut_short_ones_are_used(
    proxy: Proxy, gateway: Gateway, channel: str, visit: Visits
) -> None:
    proxy.block("/v1/ws")
    proxy.block("/v1/sse")
    proxy.limit("/v1/poll", 0.5)
    here = await subscribe(visit, proxy.url, channels=[channel], allow=(*BROKEN, RESOURCE_504))
    await here.open("poll")
    await asyncio.to_thread(gateway.publish, channel, 1)
    await here.got(1)
    assert await here.transports() == TRANSPORTS


async def test_it_goes_back_up_step_by_step_and_loses_nothing(
    proxy: Proxy, gateway: Gateway, channel: str, visit: Visits
) -> None:
    proxy.block("/v1/ws")
    proxy.block("/v1/sse")
    here = await subscribe(visit, proxy.url, channels=[channel], allow=BROKEN, upgradeAfter=200)
    await here.open("longpoll")

    async def publish(n: int) -> None:
        await http.post("/v1/publish", json={"channel": channel, "event": "n", "data": n})

    async with gateway.api() as http:
        publishing = asyncio.create_task(steadily(publish, 400, every=0.01))
        await here.got(20)
        proxy.heal("/v1/sse")
        await here.open("sse")
        proxy.heal("/v1/ws")
        await here.open("websocket")
        await publishing
    await here.got(400)
    assert await here.values(channel) == list(range(400))
    assert not (await here.seen())["resets"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_line_that_is_cut_again_and_again_gives_each_message_once(
    proxy: Proxy, gateway: Gateway, channel: str, transport: str, visit: Visits
) -> None:
    unavailable = r"Failed to load resource: the server responded with a status of 503 \(Service Unavailable\) "
    here = await subscribe(visit, proxy.url, channels=[channel], allow=(*BROKEN, unavailable), transports=[transport])
    await here.open(transport)
    sent = 0

    async def publish() -> None:
        nonlocal sent
        while not cutting.done():
            await http.post("/v1/publish", json={"channel": channel, "event": "n", "data": sent})
            sent += 1
            await asyncio.sleep(0.02)  # a back-off's worth of messages is to fit into the channel's history

    async def cut() -> None:
        for _ in range(3):
            await here.open(transport, within=40)
            before = sum(state["state"] == "waiting" for state in (await here.seen())["states"])
            proxy.block("/v1/", 503)
            proxy.cut("/v1/")
            await here.until("seen.states.filter(({ state }) => state === 'waiting').length > arg", before)
            proxy.heal("/v1/")
        await here.open(transport, within=40)

    async with gateway.api() as http:
        cutting = asyncio.create_task(cut())
        await asyncio.gather(cutting, publish())
    assert sent > 20
    await here.got(sent)
    assert await here.values(channel) == list(range(sent))
    assert not (await here.seen())["resets"]


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_line_that_falls_silent_is_noticed_and_left(
    proxy: Proxy, gateway: Gateway, channel: str, transport: str, visit: Visits
) -> None:
    here = await subscribe(visit, proxy.url, channels=[channel], allow=BROKEN, transports=[transport])
    await here.open(transport)
    proxy.freeze("/v1/")
    await asyncio.to_thread(gateway.publish, channel, "into the silence")
    await here.got(1)
    assert await here.values(channel) == ["into the silence"]
    [reason] = [state["reason"] for state in (await here.seen())["states"] if state["state"] == "waiting"]
    assert reason.startswith("silence")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_channels_come_and_go_and_a_forbidden_one_harms_no_other(
    proxy: Proxy, gateway: Gateway, channel: str, transport: str, visit: Visits
) -> None:
    forbidden = r"Failed to load resource: the server responded with a status of 403 \(Forbidden\) "
    here = await subscribe(visit, proxy.url, channels=[channel], allow=(forbidden,), transports=[transport])
    await here.open(transport)
    more = f"{channel}-more"
    await asyncio.to_thread(gateway.publish, more, "before", "test")
    await here.call(f"ringcast.subscribe('{more}', {{ since: '5m' }})")
    await here.got(1)
    await here.call("ringcast.subscribe('room:secret')")
    await here.until("seen.errors.length === 1")
    assert (await here.seen())["errors"][0]["code"] == ("forbidden" if transport == "websocket" else 4003)
    assert await here.call("ringcast.channels") == [channel, more]
    await here.call(f"ringcast.unsubscribe('{more}')")
    for name in (more, channel):
        await asyncio.to_thread(gateway.publish, name, "after", "test")
    await here.got(2)
    assert (await here.values(channel), await here.values(more)) == (["after"], ["before"])
    assert await here.call("ringcast.status.state") == "open"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_more_channels_than_a_url_holds(
    proxy: Proxy, gateway: Gateway, channel: str, transport: str, visit: Visits
) -> None:
    channels = [f"{channel}-{n:03}-ü" for n in range(300)]
    here = await subscribe(visit, proxy.url, channels=channels, transports=[transport])
    await here.open(transport)
    await asyncio.to_thread(gateway.publish, channels[299], "first")
    await here.got(1)
    await here.call("ringcast.suspend()")
    await asyncio.to_thread(gateway.publish, channels[150], "missed")
    assert len(await here.call("ringcast.cursor")) > 4096
    await here.call("ringcast.resume()")
    await here.got(2)
    assert await here.values(channels[150]) == ["missed"]
    assert not (await here.seen())["resets"]


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_publishing_from_the_browser(
    proxy: Proxy, gateway: Gateway, channel: str, transport: str, visit: Visits
) -> None:
    denied = r"Failed to load resource: the server responded with a status of (403|422) "
    here = await subscribe(visit, proxy.url, channels=[channel], transports=[transport], allow=(denied,))
    await here.open(transport)
    publish = f"ringcast.publish('{channel}', 'greeting', {{ text: '日本 🎉' }}, {{ id: 'one' }})"
    first = await here.call(publish)
    again = await here.call(publish)
    assert (first["id"], first["duplicate"], again["duplicate"]) == ("one", False, True)
    assert again["offset"] == first["offset"]
    await here.got(1)
    assert await here.values(channel) == [{"text": "日本 🎉"}]
    refused = "ringcast.publish('room:secret', 'e', 1).catch(({ code }) => code)"
    assert await here.call(refused) == "forbidden"
    assert (await here.seen())["messages"][0]["offset"] == first["offset"]


async def test_a_token_that_no_subprotocol_can_hold_travels_in_the_first_frame(
    proxy: Proxy, gateway: Gateway, channel: str, visit: Visits
) -> None:
    here = await subscribe(
        visit, proxy.url, channels=[channel], tokens=lambda _: ODD_KEY, transports=["websocket"]
    )
    await here.open("websocket")
    await asyncio.to_thread(gateway.publish, channel, 1)
    await here.got(1)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_reset_over_each_transport_and_then_on_as_before(
    proxy: Proxy, gateway: Gateway, channel: str, transport: str, visit: Visits
) -> None:
    await asyncio.to_thread(gateway.publish, channel, "held")
    here = await subscribe(
        visit, proxy.url, channels=[channel], transports=[transport], cursor=encode_cursor({channel: 1}),
        tokens=lambda _: token("bob", ["topic:*"]),
    )  # fmt: skip
    await here.until("seen.resets.length === 1")
    assert (await here.seen())["resets"][0]["channel"] == channel
    await here.got(1)
    await asyncio.to_thread(gateway.publish, channel, "new")
    await here.got(2)
    assert await here.values(channel) == ["held", "new"]
