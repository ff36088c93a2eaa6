"""The Python subscriber against a real gateway, through a proxy that cuts, blocks, stalls and buffers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx
import pytest

from gateway.client import Event, Message, Refused, Reset, Subscriber, TokenExpired
from gateway.message import decode_cursor, new_id
from tests.publisher.faults import Reply, faulty
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, token
from tests.support.proxy import Proxy

TRANSPORTS = ("ws", "sse", "poll")
WITHIN = 30.0  # seconds; reconnecting waits up to a few of them


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"heartbeat": "500ms", "jwt_leeway": 0, "failed_logins": 1000}


@pytest.fixture
async def proxy(gateway: Gateway) -> AsyncIterator[Proxy]:
    async with Proxy(gateway.port) as proxy:
        yield proxy


@pytest.fixture
async def api(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.api() as api:
        yield api


def topic() -> str:
    """One that no other test has used."""
    return f"topic:{new_id().lower()}"


async def publish(api: httpx.AsyncClient, channel: str, data: Any) -> None:
    (await api.post("/v1/publish", json={"channel": channel, "data": data})).raise_for_status()


async def soon(awaitable: Awaitable[Event]) -> Event:
    async with asyncio.timeout(WITHIN):
        return await awaitable


async def message(subscriber: Subscriber) -> Message:
    event: Event = await soon(anext(subscriber))
    assert isinstance(event, Message), event
    return event


async def open_at(subscriber: Subscriber, api: httpx.AsyncClient, channel: str) -> None:
    """Be connected at the live end, having received what came just before it."""
    first = asyncio.ensure_future(message(subscriber))
    while subscriber.transport is None:
        await asyncio.sleep(0.01)
        assert not first.done() or first.result()
    await publish(api, channel, "open")
    assert (await first).data == "open"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_each_message_comes_once_and_in_order_through_every_cut(
    proxy: Proxy, api: httpx.AsyncClient, transport: str
) -> None:
    news, count = topic(), 120

    async def publishing() -> None:
        for n in range(count):
            await publish(api, news, n)
            if n % 40 == 20:
                proxy.cut()
                await asyncio.sleep(0.2)

    async with Subscriber(proxy.url, API_KEY, [news], since="earliest", transport=transport) as subscriber:
        task = asyncio.create_task(publishing())
        got = [await message(subscriber) for _ in range(count)]
        await task
        assert [each.data for each in got] == list(range(count))
        assert subscriber.transport == transport
        assert subscriber.cursor is not None
        assert decode_cursor(subscriber.cursor, 4096) == {news: got[-1].offset}


@pytest.mark.parametrize(("blocked", "gets_through"), [
    ((), "ws"), (("/v1/ws",), "sse"), (("/v1/ws", "/v1/sse"), "poll"),
])  # fmt: skip
@pytest.mark.parametrize("status", [403, 404, 426, 502])
async def test_auto_takes_the_best_that_is_not_blocked(
    proxy: Proxy, api: httpx.AsyncClient, blocked: tuple[str, ...], gets_through: str, status: int
) -> None:
    news = topic()
    for path in blocked:
        proxy.block(path, status)
    async with Subscriber(proxy.url, API_KEY, [news]) as subscriber:
        await open_at(subscriber, api, news)
        assert subscriber.transport == gets_through


async def test_auto_leaves_what_stalls_or_is_held_back(
    proxy: Proxy, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("links", "subscriber"):
        monkeypatch.setattr(f"gateway.client.{module}.OPEN_WITHIN", 1.0)
    news = topic()
    proxy.stall("/v1/ws")
    proxy.buffer("/v1/sse")
    async with Subscriber(proxy.url, API_KEY, [news]) as subscriber:
        await open_at(subscriber, api, news)
        assert subscriber.transport == "poll"


async def test_auto_comes_back_to_the_best_without_losing_any(
    proxy: Proxy, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.client.reconnect.LOWERED", 0.0)
    news = topic()
    proxy.block("/v1/ws")
    async with Subscriber(proxy.url, API_KEY, [news]) as subscriber:
        await open_at(subscriber, api, news)
        assert subscriber.transport == "sse"
        proxy.heal("/v1/ws")
        proxy.cut()
        await publish(api, news, "meanwhile")
        assert (await message(subscriber)).data == "meanwhile"
        assert subscriber.transport == "ws"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_expired_token_is_renewed_and_nothing_is_lost(gateway: Gateway, transport: str) -> None:
    news, made = topic(), 0

    async def fresh() -> str:
        nonlocal made
        made += 1
        return token("ann", [news], expires_in=3 if made == 1 else 600)

    async with (
        gateway.api() as api,
        Subscriber(gateway.url, fresh, [news], transport=transport) as subscriber,
    ):
        await open_at(subscriber, api, news)
        for n in itertools.count():
            await publish(api, news, n)
            assert (await message(subscriber)).data == n
            if made == 2:
                break
            await asyncio.sleep(0.2)
        await publish(api, news, "renewed")
        assert (await message(subscriber)).data == "renewed"
        assert made == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_expired_token_that_nobody_renews_ends_it(gateway: Gateway, transport: str) -> None:
    async with Subscriber(gateway.url, token("ann", expires_in=-5), transport=transport) as subscriber:
        with pytest.raises(TokenExpired):
            await soon(anext(subscriber))
        with pytest.raises(StopAsyncIteration):
            await anext(subscriber)


@pytest.mark.parametrize("transport", ["auto", *TRANSPORTS])
@pytest.mark.parametrize(("credential", "channels", "code"), [
    ("nonsense", ["topic:a"], 4001), (token("ann"), ["topic:a"], 4003), (token("ann", ["*"]), ["ringcast:nodes"], 4003),
])  # fmt: skip
async def test_a_refusal_is_raised_and_changes_no_transport(
    proxy: Proxy, transport: str, credential: str, channels: list[str], code: int
) -> None:
    async with Subscriber(proxy.url, credential, channels, transport=transport) as subscriber:
        with pytest.raises(Refused) as refusal:
            await soon(anext(subscriber))
        assert refusal.value.code == code
        assert refusal.value.reason
        assert len(proxy.requests) == 1


@pytest.mark.parametrize("transport", ["auto", *TRANSPORTS])
async def test_what_is_no_gateway_is_told(transport: str) -> None:
    async with (
        faulty(*[Reply(status=404, body=b"<html>nginx</html>")] * 9) as server,
        Subscriber(server.url, API_KEY, ["topic:a"], transport=transport) as subscriber,
    ):
        with pytest.raises(Refused, match="does the URL name a Ringcast gateway"):
            await soon(anext(subscriber))


@pytest.mark.parametrize("transport", ["ws", "sse"])
async def test_silence_ends_a_connection(gateway: Gateway, api: httpx.AsyncClient, transport: str) -> None:
    news = topic()
    async with Subscriber(gateway.url, API_KEY, [news], transport=transport) as subscriber:
        await open_at(subscriber, api, news)
        gateway.signal(signal.SIGSTOP)
        try:
            waiting = asyncio.ensure_future(message(subscriber))
            await gateway.until(lambda: subscriber.transport is None, WITHIN)
        finally:
            gateway.signal(signal.SIGCONT)
        await publish(api, news, "awake")
        assert (await waiting).data == "awake"


async def test_a_full_node_is_waited_for_on_the_same_transport() -> None:
    news = topic()
    with Gateway(max_connections=1) as gateway:
        async with (
            gateway.api() as api, Proxy(gateway.port) as proxy,
            Subscriber(gateway.url, API_KEY, [news]) as first,
            Subscriber(proxy.url, API_KEY, [news], since="earliest") as second,
        ):  # fmt: skip
            await open_at(first, api, news)
            waiting = asyncio.ensure_future(message(second))
            await gateway.until(lambda: len(proxy.requests) >= 2, WITHIN)
            await first.aclose()
            assert (await waiting).data == "open"
            assert second.transport == "ws"
            assert all(line.startswith("GET /v1/ws?") for line in proxy.requests)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_gateway_that_restarts_says_goodbye_and_then_resets(transport: str) -> None:
    news = topic()
    with Gateway() as gateway:
        async with Subscriber(gateway.url, API_KEY, [news], transport=transport) as subscriber:
            async with gateway.api() as api:
                await open_at(subscriber, api, news)
            waiting = asyncio.ensure_future(soon(anext(subscriber)))
            await asyncio.to_thread(gateway.restart)
            reset = await waiting
            assert isinstance(reset, Reset)
            assert (reset.channel, reset.reason) == (news, "lost")
            await asyncio.to_thread(gateway.publish, news, "after")
            assert (await message(subscriber)).data == "after"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_cursor_of_many_channels_fits_every_transport(
    gateway: Gateway, api: httpx.AsyncClient, transport: str
) -> None:
    mark = new_id().lower()
    channels = [f"topic:{mark}-{n}" for n in range(400)]
    async with Subscriber(gateway.url, token("ann", ["topic:*"]), channels, transport=transport) as subscriber:
        await open_at(subscriber, api, channels[7])
        cursor = subscriber.cursor
    assert cursor is not None
    assert len(cursor) > 16_000
    await publish(api, channels[399], "meanwhile")
    again = Subscriber(gateway.url, token("ann", ["topic:*"]), channels, cursor=cursor, transport=transport)
    async with again as subscriber:
        assert (await message(subscriber)).channel == channels[399]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_token_is_never_logged(
    gateway: Gateway, api: httpx.AsyncClient, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    news = topic()
    secret = token("ann", [news])
    async with Subscriber(gateway.url, secret, [news], transport=transport) as subscriber:
        await open_at(subscriber, api, news)
    assert f"connected over {transport}" in caplog.text
    assert secret not in caplog.text
    assert secret.rsplit(".", 1)[1] not in caplog.text


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_leaving_ends_the_session(gateway: Gateway, api: httpx.AsyncClient, transport: str) -> None:
    news = topic()
    async with Subscriber(gateway.url, API_KEY, [news], transport=transport) as subscriber:
        await open_at(subscriber, api, news)
    await gateway.until(lambda: gateway.metric("ringcast_sessions") == 0)


async def test_a_task_that_iterates_can_be_cancelled(gateway: Gateway, api: httpx.AsyncClient) -> None:
    news = topic()
    async with Subscriber(gateway.url, API_KEY, [news]) as subscriber:
        await open_at(subscriber, api, news)
        task = asyncio.ensure_future(anext(subscriber))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await gateway.until(lambda: gateway.metric("ringcast_sessions") == 0)
