"""A bare `EventSource` with a stream ticket: what a page has that does not load the client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.browser.conftest import ICON, RESOURCE_FAILED, Visit, Visits
from tests.browser.subscriber import steadily
from tests.support.clients import connect
from tests.support.gateway import Gateway
from tests.support.keys import token
from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

INCOMPLETE = r"Failed to load resource: net::ERR_\w+ \S+/v1/sse"

_SCRIPT = """([url, event]) => {
  const seen = (window.seen = { messages: [], opens: 0, goodbyes: 0, resets: 0 });
  const source = (window.source = new EventSource(url));
  source.addEventListener(event, ({ data }) => seen.messages.push(JSON.parse(data)));
  source.addEventListener("open", () => (seen.opens += 1));
  source.addEventListener("ringcast.reset", () => (seen.resets += 1));
}"""


async def listen(visit: Visits, url: str, ticket: str, event: str = "tick") -> Visit:
    here = await visit(f"{url}/livez")
    here.allow(ICON, INCOMPLETE, RESOURCE_FAILED)
    await here.page.evaluate(_SCRIPT, [f"{url}/v1/sse?ticket={ticket}", event])
    return here


def ticket_for(gateway: Gateway, channel: str, **more: Any) -> str:
    with gateway.http(token("ann", ["topic:*"])) as http:
        answer = http.post("/v1/tickets", json={"use": "stream", "channels": [channel], **more}).raise_for_status()
    ticket: str = answer.json()["ticket"]
    return ticket


async def test_it_comes_back_by_itself_and_loses_nothing(proxy: Proxy, gateway: Gateway, visit: Visits) -> None:
    channel = "topic:event-source"
    here = await listen(visit, proxy.url, await asyncio.to_thread(ticket_for, gateway, channel))
    await here.page.wait_for_function("seen.opens === 1")

    async def publish(n: int) -> None:
        body = {"channel": channel, "event": "tick", "data": n, "id": f"tick-{n}"}
        (await http.post("/v1/publish", json=body)).raise_for_status()
        if n in (0, 120, 260):
            proxy.cut("/v1/sse")

    async with gateway.api() as http:
        await steadily(publish, 400, every=0.015)
    await here.page.wait_for_function("new Set(seen.messages.map(({ id }) => id)).size === 400", timeout=15000)
    seen = await here.page.evaluate("seen")
    assert (seen["opens"], seen["resets"]) == (4, 0)
    assert len([line for line in proxy.requests if "/v1/sse" in line]) == 4
    # What came after the last checkpoint comes again, which is a second's worth at most: 67 messages, three times.
    assert len(seen["messages"]) < 400 + 3 * 100
    first = list(dict.fromkeys(message["data"] for message in seen["messages"]))
    assert first == list(range(400))


async def test_a_refusal_stops_it(proxy: Proxy, visit: Visits) -> None:
    here = await visit(f"{proxy.url}/livez")
    here.allow(ICON, r"Failed to load resource: the server responded with a status of 401 \(Unauthorized\) ")
    await here.page.evaluate(_SCRIPT, [f"{proxy.url}/v1/sse?ticket=rct1.not.one", "tick"])
    await here.page.wait_for_function("source.readyState === EventSource.CLOSED")
    assert await here.page.evaluate("seen.opens") == 0


async def test_a_full_node_is_asked_again(gateway_settings: dict[str, Any], visit: Visits) -> None:
    async with Gateway(**gateway_settings, max_connections=1) as gateway:
        occupant = await connect("websocket", gateway.url, token("bob"))
        here = await listen(visit, gateway.url, await asyncio.to_thread(ticket_for, gateway, "topic:full"))
        await here.page.wait_for_function("seen.opens === 1")
        await occupant.close()
        await gateway.until(lambda: gateway.metric("ringcast_connections") == 1)
        await asyncio.to_thread(gateway.publish, "topic:full", 1, "tick")
        await here.page.wait_for_function("seen.messages.length === 1")
        await here.page.evaluate("source.close()")  # before the gateway ends
