"""The operators' page in a real browser: what moves while messages flow, what it explains, and who may open it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Visit, Visits
from tests.support.clients import connect
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, bearer, token
from tests.support.publishing import publish
from tests.support.redis import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRONG = r"Failed to load resource: the server responded with a status of 401 \(Unauthorized\) \S+/console/login"
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Gateway]]:
    """Two nodes of one store."""
    with RedisServer() as redis:
        names = ("node-a", "node-b")
        with Gateway(broker=redis.url, node=names[0]) as first, Gateway(broker=redis.url, node=names[1]) as second:
            yield [first, second]


async def opened(visit: Visits, gateway: Gateway, key: str = API_KEY) -> Visit:
    here = await visit(f"{gateway.url}/console")
    await here.page.fill("#key", key)
    await here.page.click("#login button")
    return here


@asynccontextmanager
async def load(gateway: Gateway, channel: str) -> AsyncIterator[None]:
    """Messages to a channel for as long as it lasts."""

    async def flow() -> None:
        while True:
            await publish(gateway, channel, range(50))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(flow())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_rates_move_and_what_happens_is_told(nodes: list[Gateway], visit: Visits, tmp_path: Path) -> None:
    here = await opened(visit, nodes[0])
    page = here.page
    await page.wait_for_selector("#status[data-state=open]")
    for node in ("node-a", "node-b"):
        await page.wait_for_selector(f"#ring path[data-node={node}]", state="attached")
        await page.wait_for_selector(f"#nodes tr[data-node={node}]")
    bearer_of = token("ann", ["topic:*"])
    async with await connect("websocket", nodes[1].url, bearer_of, channels=["topic:load"]) as client:
        await client.joined()
        async with load(nodes[0], "topic:load"):
            for total in ("published", "deliveries", "bytes", "connections"):
                await expect(page.locator(f"[data-total={total}]")).not_to_have_text("0", timeout=30_000)
            await expect(page.locator("#past polyline")).to_have_attribute("points", re.compile(r"(\S+ ){3}"))

            await page.fill("#find input", "ann")
            await page.click("#find button")
            await page.wait_for_selector("#find .answer table >> text=node-b")
            assert await page.text_content("#find .answer dd") == "user:ann"
            assert await page.locator("#ring .mark").count() == 1
            await page.screenshot(path=tmp_path / "desk.png", full_page=True)
            await page.set_viewport_size(PHONE)  # type: ignore[arg-type]
            assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            await page.screenshot(path=tmp_path / "phone.png", full_page=True)
        with nodes[0].http() as http:
            http.post("/v1/disconnect", json={"user": "ann"}).raise_for_status()
        await page.wait_for_selector("#events li >> text=node-b closed 4001 unauthorised")


async def test_a_node_that_goes_leaves_the_ring(visit: Visits) -> None:
    with RedisServer() as redis, Gateway(broker=redis.url, node="stays") as stays:
        with Gateway(broker=redis.url, node="goes") as goes:
            here = await opened(visit, stays)
            await here.page.wait_for_selector("#ring path[data-node=goes]", state="attached")
            goes.stop()
        await here.page.wait_for_selector("#ring path[data-node=goes]", state="detached")
        await here.page.wait_for_selector("#nodes tr[data-node=goes]", state="detached")


async def test_a_message_can_be_published_and_seen(gateway: Gateway, visit: Visits) -> None:
    """Also on a store in memory, where there is one node."""
    here = await opened(visit, gateway)
    page = here.page
    await page.wait_for_selector("#nodes tbody tr")
    await page.fill("#tail input", "topic:seen")
    await page.click("#tail button")
    await page.wait_for_selector("#tail li >> text=Waiting")
    await gateway.until(lambda: gateway.metric("ringcast_connections", transport="sse") == 2)
    await page.fill("#publish [name=channel]", "topic:seen")
    await page.fill("#publish textarea", json.dumps({"<b>": "not markup"}))
    await page.click("#publish button")
    await page.wait_for_selector("#publish .answer >> text=Stored at")
    await page.wait_for_selector('#tail li >> text={"<b>":"not markup"}')
    for channel, why in (("jobs:ann", "the gateway's own"), ("Nope", "must begin with a namespace")):
        await page.fill("#publish [name=channel]", channel)
        here.allow(r"Failed to load resource: the server responded with a status of 40[03] \(\w+ ?\w*\) \S+/v1/publish")
        await page.click("#publish button")
        await page.wait_for_selector(f"#publish .refusal >> text={why}")


async def test_without_the_key_there_is_nothing_to_see(gateway: Gateway, visit: Visits) -> None:
    here = await opened(visit, gateway, key="not the key")
    here.allow(WRONG)
    await here.page.wait_for_selector("#login .refusal >> text=not accepted")
    assert await here.page.is_hidden("#desk")
    await here.page.fill("#key", API_KEY)
    await here.page.click("#login button")
    await here.page.wait_for_selector("#status[data-state=open]")
    assert await here.page.evaluate("document.cookie") == ""  # no script can read it
    (cookie,) = await here.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert cookie["path"] == "/console/"
    assert API_KEY not in json.dumps(await here.context.storage_state())

    await here.page.reload()  # the cookie is enough
    await here.page.wait_for_selector("#status[data-state=open]")
    await here.page.click("#logout")
    await here.page.wait_for_selector("#login")
    assert await here.context.cookies() == []
    async with gateway.api() as http:  # a copy of it is worth nothing either
        http.headers.clear()
        copied = {"Cookie": f"ringcast_operator={cookie['value']}", "Sec-Fetch-Site": "same-origin"}
        assert (await http.get("/console/v1/nodes", headers=copied)).status_code == 401
        assert (await http.get("/console/v1/nodes", headers=bearer())).status_code == 200
