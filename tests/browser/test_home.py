"""The browser client goes where the nodes say that it belongs, and a home that is no good is no outage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.message import partition_of
from tests.browser.conftest import RESOURCE_FAILED, WEBSOCKET_FAILED, Visits
from tests.browser.subscriber import Subscriber, subscribe
from tests.support.keys import token
from tests.support.two_nodes import HERE, HOME, Pair, Two, pair, placed

pytestmark = pytest.mark.asyncio(loop_scope="module")

BROKEN = (
    WEBSOCKET_FAILED, RESOURCE_FAILED,
    r"Failed to load resource: the server responded with a status of 403 \(Forbidden\) \S+/v1/(sse|poll)",
    r"Access to fetch at '\S+/v1/(sse|poll)\S*' from origin '\S+' has been blocked by CORS policy",
)  # fmt: skip


@pytest.fixture(scope="module")
def nodes(gateway_settings: dict[str, Any]) -> Iterator[Pair]:
    with pair(**gateway_settings) as nodes:
        yield nodes


@pytest_asyncio.fixture(loop_scope="module")
async def two(nodes: Pair) -> AsyncIterator[Two]:
    async with placed(nodes) as two:
        yield two


async def opened(visit: Visits, two: Two, transport: str) -> Subscriber:
    here = await subscribe(
        visit, two.front.url, channels=[two.topic], tokens=lambda _: token(two.user, ["topic:*"]),
        transports=[transport], allow=BROKEN,
    )  # fmt: skip
    await here.open(transport)
    return here


async def at(here: Subscriber, node: str) -> None:
    await here.page.wait_for_function("node => window.ringcast.placement.node === node", arg=node, timeout=15_000)


@pytest.mark.parametrize("transport", ["websocket", "sse", "longpoll"])
async def test_it_comes_back_at_its_home(two: Two, transport: str, visit: Visits) -> None:
    here = await opened(visit, two, transport)
    partition = partition_of(f"user:{two.user}", 1024)
    assert (await here.call("ringcast.placement"))["partition"] == partition
    if transport != "longpoll":
        assert await here.call("ringcast.placement") == {"node": HERE, "partition": partition, "home": two.home.url}
        assert not two.home.requests, "a home never forces a reconnect"
        two.front.cut("/v1/")
        await two.publish("missed")
    await at(here, HOME)
    if transport == "longpoll":
        await two.publish("missed")
    await here.got(1)
    assert await here.values(two.topic) == ["missed"]
    assert not (await here.seen())["resets"]
    streams = [line for line in two.home.requests if line.startswith("GET /v1/")]
    assert streams
    assert all(f"p={partition}" in line for line in streams)


@pytest.mark.parametrize("transport", ["websocket", "sse", "longpoll"])
@pytest.mark.parametrize("fault", ["dead", "blocked"])
async def test_a_bad_home_costs_one_attempt(two: Two, transport: str, fault: str, visit: Visits) -> None:
    if fault == "dead":
        await two.home.refuse()
    else:
        two.home.block("/v1/", 403)
    here = await opened(visit, two, transport)
    two.front.cut("/v1/")
    await two.publish("missed")
    await here.got(1)
    assert await here.call("ringcast.placement.node") == HERE
    assert await here.call("ringcast.status.transport") == transport
    states = [state["state"] for state in (await here.seen())["states"]]
    assert "stopped" not in states
    assert states.count("waiting") <= 1, "no back-off between the home and the given address"


async def test_a_page_that_says_its_partition_is_placed_from_its_first_connection(two: Two, visit: Visits) -> None:
    here = await subscribe(visit, two.front.url, channels=[two.topic], partition=417, transports=["websocket"])
    await here.open("websocket")
    [first] = [line for line in two.front.requests if "/v1/ws" in line]
    assert "p=417" in first
