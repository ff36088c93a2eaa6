"""What the gateway refuses is told apart from what a network blocks, and never makes the client downgrade."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from gateway.app import create_app
from gateway.node import Node
from gateway.server import Server
from gateway.settings import Settings
from tests.browser.conftest import RESOURCE_401, Visits, listening, serving
from tests.browser.subscriber import steadily, subscribe
from tests.support.clients import connect
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, HMAC_KEY, bearer, token
from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESOURCE_503 = r"Failed to load resource: the server responded with a status of 503 \(Service Unavailable\) \S+/v1/poll"
RESOURCE_429 = r"Failed to load resource: the server responded with a status of 429 \(Too Many Requests\) \S+/v1/"
FORBIDDEN = r"Failed to load resource: the server responded with a status of 403 \(Forbidden\) \S+/v1/"
LADDER = ["websocket", "sse", "longpoll", "poll"]


@pytest.mark.parametrize("transport", LADDER)
async def test_a_token_that_expires_is_replaced_over_the_same_transport(
    proxy: Proxy, gateway: Gateway, transport: str, visit: Visits
) -> None:
    channel = f"topic:expires-{transport}"

    def tokens(n: int) -> str:
        return token("ann", ["topic:*"], expires_in=2 if n == 1 else 600)

    async def publish(n: int) -> None:
        await http.post("/v1/publish", json={"channel": channel, "event": "n", "data": n})

    here = await subscribe(
        visit, proxy.url, channels=[channel], transports=LADDER[LADDER.index(transport) :], tokens=tokens,
        allow=(RESOURCE_401,),
    )  # fmt: skip
    await here.open(transport)
    async with gateway.api() as http:
        await steadily(publish, 150, every=0.02)
    await here.got(150)
    assert await here.values(channel) == list(range(150))
    await here.open(transport)
    assert here.tokens == 2
    assert await here.transports() == [transport]
    assert all(state["state"] != "waiting" for state in (await here.seen())["states"])


@pytest.mark.parametrize("transport", LADDER)
async def test_a_token_that_had_expired_is_replaced_before_anything_else(
    proxy: Proxy, transport: str, visit: Visits
) -> None:
    here = await subscribe(
        visit, proxy.url, channels=["topic:news"], transports=LADDER[LADDER.index(transport) :],
        tokens=lambda n: token("ann", ["topic:*"], expires_in=-60 if n == 1 else 600), allow=(RESOURCE_401,),
    )  # fmt: skip
    await here.open(transport)
    assert here.tokens == 2
    assert await here.transports() == [transport]
    codes = [state.get("code") for state in (await here.seen())["states"] if state["state"] == "waiting"]
    assert codes == [4200]  # a token just made that has expired already is no reason to hurry


@pytest.mark.parametrize(
    ("tokens", "channel", "code"),
    [
        (lambda _: "no.such.token", "topic:news", 4001),
        (lambda _: token("ann", ["topic:*"]), "room:secret", 4003),
        (lambda _: token("ann", ["topic:*"]), "no channel", 4008),
    ],
)
@pytest.mark.parametrize("transport", LADDER)
async def test_a_refusal_stops_it(
    proxy: Proxy, transport: str, tokens: Any, channel: str, code: int, visit: Visits
) -> None:
    bad = r"Failed to load resource: the server responded with a status of 400 \(Bad Request\) \S+/v1/"
    here = await subscribe(
        visit, proxy.url, channels=[channel], transports=LADDER[LADDER.index(transport) :], tokens=tokens,
        allow=(RESOURCE_401, FORBIDDEN, bad),
    )  # fmt: skip
    await here.until("status.state === 'stopped'")
    assert [error["code"] for error in (await here.seen())["errors"]] == [code]
    assert await here.transports() == [transport]


@pytest.mark.parametrize("transport", LADDER)
async def test_a_full_node_is_waited_for(gateway_settings: dict[str, Any], transport: str, visit: Visits) -> None:
    async with Gateway(**gateway_settings, max_connections=1) as gateway:
        occupant = await connect("websocket", gateway.url, token("bob"))
        here = await subscribe(
            visit, gateway.url, channels=["topic:news"], transports=LADDER[LADDER.index(transport) :],
            allow=(RESOURCE_503,),
        )  # fmt: skip
        await here.until("seen.states.some(({ code }) => code === 4104)")
        await occupant.close()
        await here.open(transport)
        assert await here.transports() == [transport]
        await here.call("ringcast.close()")  # before the gateway ends


async def test_a_rate_limit_is_waited_out(gateway_settings: dict[str, Any], visit: Visits) -> None:
    async with Gateway(**gateway_settings, requests_per_second=2) as gateway, gateway.api() as http:
        here = await subscribe(visit, gateway.url, channels=["topic:news"], allow=(RESOURCE_429,))

        refused = asyncio.Event()

        async def crowd() -> None:
            while True:
                answer = await http.get("/v1/history", params={"channel": "topic:news"})
                if answer.status_code == 429:
                    refused.set()

        await here.open("websocket")
        crowding = [asyncio.create_task(crowd()) for _ in range(8)]  # so that what is granted goes to one of them
        try:
            await refused.wait()
            await here.call("ringcast.suspend()")
            await here.call("ringcast.resume()")
            await here.until("seen.states.some(({ code }) => code === 4103)")
        finally:
            for one in crowding:
                one.cancel()
            await asyncio.gather(*crowding, return_exceptions=True)
        await here.open("websocket")
        assert await here.transports() == ["websocket"]
        await here.call("ringcast.close()")


class Draining:
    """A node that can be told to drain and stays there: what a client meets while a real one is on its way out."""

    def __init__(self, node: Node, url: str) -> None:
        self.node = node
        self.url = url

    def publish(self, channel: str, data: int) -> None:
        body = {"channel": channel, "event": "n", "data": data}
        httpx.post(f"{self.url}/v1/publish", json=body, headers=bearer(), trust_env=False).raise_for_status()


@pytest_asyncio.fixture(loop_scope="module")
async def draining() -> AsyncIterator[Draining]:
    listener, url = listening()
    settings = Settings(api_keys=[API_KEY], jwt_hmac_key=HMAC_KEY, heartbeat=1.0)
    app = create_app(settings)
    async with serving(Server(app, settings), listener):
        yield Draining(app.state.node, url)


@pytest.mark.parametrize("transport", LADDER)
async def test_a_draining_node_is_waited_for(draining: Draining, transport: str, visit: Visits) -> None:
    draining.node.admission.closed = True
    here = await subscribe(
        visit, draining.url, channels=["topic:news"], transports=LADDER[LADDER.index(transport) :],
        allow=(RESOURCE_503,),
    )  # fmt: skip
    await here.until("seen.states.filter(({ code }) => code === 4100).length >= 2")
    draining.node.admission.closed = False
    await here.open(transport)
    assert await here.transports() == [transport]


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_goodbye_is_obeyed_when_its_time_has_come(draining: Draining, transport: str, visit: Visits) -> None:
    channel = f"topic:goodbye-{transport}"
    here = await subscribe(visit, draining.url, channels=[channel], transports=LADDER[LADDER.index(transport) :])
    await here.open(transport)
    node = draining.node
    [session] = node.hub.sessions - node.own
    node.goodbye(session, 4100, "leave in a second", after=1.0, grace=2.0)
    for n in range(60):
        await asyncio.to_thread(draining.publish, channel, n)
        await asyncio.sleep(0.03)
    await here.got(60)
    assert await here.values(channel) == list(range(60))
    states = [(state["state"], state["transport"]) for state in (await here.seen())["states"]]
    assert states == [("connecting", transport), ("open", transport), ("open", transport)]
    assert session not in node.hub.sessions
