"""The Python subscriber goes where the nodes say that it belongs, and a bad home costs one quick attempt."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from gateway.client import Message, Subscriber
from gateway.message import partition_of
from tests.support.command import Running
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.two_nodes import HERE, HOME, WITHIN, Pair, Two, pair, placed

TRANSPORTS = ("ws", "sse", "poll")
SOON = 8.0  # seconds; an attempt elsewhere is given up after 10


def quick(subscriber: Subscriber) -> Subscriber:
    """Back-offs are drawn from [0, 1 s], [0, 2 s] ...: let them come out short."""
    subscriber._reconnect._jitter = lambda: 0.05
    return subscriber


def subscriber_of(two: Two, transport: str) -> Subscriber:
    return quick(Subscriber(two.front.url, token(two.user, ["topic:*"]), [two.topic], transport=transport))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Pair]:
    with pair() as nodes:
        yield nodes


@pytest.fixture
async def two(nodes: Pair) -> AsyncIterator[Two]:
    async with placed(nodes) as two:
        yield two


async def message(subscriber: Subscriber) -> Message:
    async with asyncio.timeout(WITHIN):
        event = await anext(subscriber)
    assert isinstance(event, Message), event
    return event


async def opened(two: Two, subscriber: Subscriber) -> None:
    first = asyncio.ensure_future(message(subscriber))
    while subscriber.transport is None:
        await asyncio.sleep(0.01)
        assert not first.done() or first.result()
    await two.publish("open")
    assert (await first).data == "open"


@asynccontextmanager
async def cut(two: Two, subscriber: Subscriber) -> AsyncIterator[None]:
    """Cut the line to the given address, publish, and leave with what was missed received."""
    two.front.cut()
    await two.publish("missed")
    yield
    assert (await message(subscriber)).data == "missed"


@pytest.mark.parametrize("transport", ["ws", "sse"])
async def test_it_stays_where_it_is_and_comes_back_at_its_home(two: Two, transport: str) -> None:
    async with subscriber_of(two, transport) as subscriber:
        await opened(two, subscriber)
        await two.publish("stays")
        assert (await message(subscriber)).data == "stays"
        assert subscriber.node == HERE, "a home never forces a reconnect"
        assert subscriber.partition == partition_of(f"user:{two.user}", 1024)
        assert not two.home.requests
        async with cut(two, subscriber):
            pass
        assert subscriber.node == HOME
        assert len(two.front.requests) == 1
        two.home.cut()
        await two.publish("again")
        assert (await message(subscriber)).data == "again"
        assert subscriber.node == HOME, "a home that tells of no other is still the home"
        assert [f"p={subscriber.partition}" in line for line in two.home.requests] == [True, True]


async def test_polls_go_home_from_the_next_one_on(two: Two) -> None:
    async with subscriber_of(two, "poll") as subscriber:
        await opened(two, subscriber)
        await two.publish("next")
        assert (await message(subscriber)).data == "next"
        assert subscriber.node == HOME
        assert len(two.front.requests) == 1
        await two.home.refuse()
        await two.publish("without a home")
        assert (await message(subscriber)).data == "without a home"
        assert subscriber.node == HERE
        await two.publish("and on")
        assert (await message(subscriber)).data == "and on"
        assert subscriber.node == HERE, "a home that failed is not asked again soon"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("fault", ["dead", "silent", "blocked", "no gateway"])
async def test_a_bad_home_costs_one_quick_attempt(
    two: Two, transport: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("links", "subscriber"):
        monkeypatch.setattr(f"gateway.client.{module}.HOME_WITHIN", 1.0)
    if fault == "dead":
        await two.home.refuse()
    elif fault == "silent":
        two.home.stall("/v1/")
    else:
        two.home.block("/v1/", 403 if fault == "blocked" else 200)
    async with subscriber_of(two, transport) as subscriber:
        await opened(two, subscriber)
        began = time.monotonic()
        async with cut(two, subscriber):
            pass
        assert time.monotonic() - began < SOON
        assert (subscriber.node, subscriber.transport) == (HERE, transport)
        asked = len(two.home.requests)
        assert asked == (0 if fault == "dead" else 1)
        async with cut(two, subscriber):
            pass
        assert len(two.home.requests) == asked, "it is left alone for a while"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_home_that_refuses_the_token_has_not_the_last_word(two: Two, transport: str) -> None:
    with Gateway(jwt_hmac_key="another key, of another deployment", api_keys="x" * 40) as stranger:
        upstream, two.home.upstream = two.home.upstream, ("127.0.0.1", stranger.port)
        try:
            async with subscriber_of(two, transport) as subscriber:
                await opened(two, subscriber)
                async with cut(two, subscriber):
                    pass
                assert subscriber.node == HERE
                assert len(two.home.requests) == 1
        finally:
            two.home.upstream = upstream


@pytest.mark.parametrize("transport", ["ws", "sse"])
async def test_a_token_that_expires_at_home_is_renewed_there(two: Two, transport: str) -> None:
    made = 0

    def fresh() -> str:
        nonlocal made
        made += 1
        return token(two.user, ["topic:*"], expires_in=3 if made == 2 else 600)

    async with quick(Subscriber(two.front.url, fresh, [two.topic], transport=transport)) as subscriber:
        await opened(two, subscriber)
        subscriber._token = None  # the next connection asks for one, which expires soon
        async with cut(two, subscriber):
            pass
        assert subscriber.node == HOME
        waiting = asyncio.ensure_future(message(subscriber))
        await two.a.until(lambda: made == 3, WITHIN)
        await two.publish("renewed")
        assert (await waiting).data == "renewed"
        assert subscriber.node == HOME
        assert len(two.home.requests) == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("count", [1, 400], ids=["few", "more than a url holds"])
async def test_the_partition_is_in_the_url_whatever_else_is_not(two: Two, transport: str, count: int) -> None:
    channels = [two.topic, *(f"topic:{'x' * 30}-{n}" for n in range(count - 1))]
    ann = token(two.user, ["topic:*"])
    async with Subscriber(two.front.url, ann, channels, transport=transport, partition=7) as subscriber:
        await opened(two, subscriber)
    [line, *_] = two.front.requests
    assert re.search(r"[?&]p=7\b", line), line
    assert ("topic" in line) == (transport == "ws" and count == 1)


async def test_listen_goes_home_too(two: Two) -> None:
    env = {"RINGCAST_URL": two.front.url, "RINGCAST_TOKEN": token(two.user, ["topic:*"])}
    with Running("listen", two.topic, "--transport", "ws", "--count", "1", **env) as listening:
        await asyncio.to_thread(listening.until, f"connected over ws to {HERE}")
        two.front.cut()
        await asyncio.to_thread(listening.until, f"connected over ws to {HOME}")
        await two.publish("at home")
        assert "at home" in await asyncio.to_thread(listening.line)
        assert listening.end() == 0


async def test_it_is_told_of_no_home_that_no_node_has(nodes: Pair) -> None:
    a, _, _ = nodes
    async with a.api() as api:
        homes = set()
        for n in range(40):
            headers = {"Authorization": f"Bearer {token(f'v{n}')}"}
            answer = await api.get("/v1/poll", headers=headers)
            assert answer.headers["Ringcast-Node"] == HERE
            assert int(answer.headers["Ringcast-Partition"]) == partition_of(f"user:v{n}", 1024)
            homes.add(answer.headers.get("Ringcast-Home"))
        assert len(homes) == 2
        assert None in homes, "at home already, or its home has no address"
        assert "Ringcast-Partition" not in (await api.get("/v1/poll?channels=topic:x")).headers, "a server has none"


async def test_a_home_that_drains_sends_its_clients_to_the_given_address() -> None:
    with pair(drain="500ms") as nodes:
        async with placed(nodes) as two, subscriber_of(two, "ws") as subscriber:
            await opened(two, subscriber)
            async with cut(two, subscriber):
                pass
            assert subscriber.node == HOME
            await asyncio.sleep(1.1)  # a connection that lasted for less is no reason to hurry
            waiting = asyncio.ensure_future(message(subscriber))
            two.b.signal(signal.SIGTERM)
            await two.a.until(lambda: subscriber.node == HERE, WITHIN)
            await two.publish("drained")
            assert (await waiting).data == "drained"
            assert len(two.home.requests) == 1, "not asked again: it had said goodbye"
            assert await asyncio.to_thread(two.b.ended) == 0
