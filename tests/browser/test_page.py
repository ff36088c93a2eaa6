"""The demo's page in a real browser, over every transport, through every way of losing the line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.browser.conftest import (
    CORS,
    RESOURCE_FAILED,
    WEBSOCKET_403,
    WEBSOCKET_FAILED,
    Visit,
    Visits,
    demo,
)
from tests.support.gateway import Gateway
from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def gateway(gateway_settings: dict[str, Any]) -> Iterator[Gateway]:
    """One for each test: the page begins with what the last 15 minutes held, which here is nothing."""
    with Gateway(**gateway_settings) as gateway:
        yield gateway
        assert not gateway.complaints(), gateway.stderr


async def publish(page_url: str, text: str, channel: str = "user:demo") -> None:
    async with httpx.AsyncClient(base_url=page_url, trust_env=False) as http:
        body = {"channel": channel, "event": "note", "data": {"text": text}}
        (await http.post("/demo/publish", json=body)).raise_for_status()


async def texts(visit: Visit) -> list[str]:
    shown: list[str] = await visit.page.eval_on_selector_all(
        "#messages li.message .text", "all => all.map(one => one.textContent.trim())"
    )
    return shown


async def test_publishing_from_the_page_shows_it_over_a_websocket(page_url: str, visit: Visits) -> None:
    here = await visit(page_url)
    await here.status("open", "websocket")
    await here.page.fill("#publish [name=text]", "Straße <b>日本</b> 🎉 & more")
    await here.page.click("#publish .primary")
    await here.shows(1)
    assert await texts(here) == ["Straße <b>日本</b> 🎉 & more"]
    await here.page.click("#burst")
    await here.shows(6)


async def test_with_the_websocket_blocked_it_is_server_sent_events(page_url: str, proxy: Proxy, visit: Visits) -> None:
    proxy.block("/v1/ws")
    here = await visit(page_url)
    here.allow(WEBSOCKET_403)
    await here.status("open", "sse")
    await here.page.click("#burst")
    await here.shows(5)


async def test_with_both_blocked_it_is_polling(page_url: str, proxy: Proxy, visit: Visits) -> None:
    proxy.block("/v1/ws")
    proxy.block("/v1/sse")
    here = await visit(page_url)
    here.allow(WEBSOCKET_403, CORS, RESOURCE_FAILED)
    await here.status("open", "longpoll")
    await here.page.click("#burst")
    await here.shows(5)


async def test_the_button_cuts_the_line_and_shows_what_came_back(page_url: str, visit: Visits) -> None:
    here = await visit(page_url)
    await here.status("open", "websocket")
    await publish(page_url, "before")
    await here.shows(1)
    await here.page.click("#cut")
    await here.status("suspended")
    await here.page.wait_for_selector("#receipt:has-text('5 stored')")
    await here.shows(1)
    await here.page.click("#cut")
    await here.shows(6)
    await here.page.wait_for_selector("#catch-up[data-recovered='5']")
    assert await here.page.locator("#messages .tag").count() == 5
    await publish(page_url, "after")
    await here.shows(7)


@pytest.mark.parametrize("transport", ["websocket", "sse", "longpoll", "poll"])
async def test_a_network_that_goes_and_comes_back_loses_nothing(
    page_url: str, proxy: Proxy, transport: str, visit: Visits
) -> None:
    here = await visit(page_url)
    here.allow(WEBSOCKET_FAILED, RESOURCE_FAILED)
    await here.page.click(f"#transports input[value={transport}] + span")
    await here.status("open", transport)
    await publish(page_url, "before")
    await here.shows(1)
    await here.context.set_offline(True)
    proxy.cut()  # Chromium's switch leaves a connection that is open as it is; an unplugged cable does not
    await here.status("waiting")
    for n in range(3):
        await publish(page_url, f"meanwhile {n}")
    await here.context.set_offline(False)
    await here.status("open", transport)
    await here.shows(4)
    assert await texts(here) == ["meanwhile 2", "meanwhile 1", "meanwhile 0", "before"]


async def test_one_cursor_serves_every_transport(page_url: str, visit: Visits) -> None:
    here = await visit(page_url)
    await here.status("open", "websocket")
    sent = []
    for transport in ("websocket", "sse", "longpoll", "poll", "sse", "websocket", "auto"):
        await here.page.click("#cut")
        await here.status("suspended")
        await here.page.wait_for_selector("#receipt:has-text('stored')")
        sent += [f"while on the way to {transport}"]
        await publish(page_url, sent[-1])
        await here.page.click(f"#transports input[value={transport}] + span")
        await here.status("open", "websocket" if transport == "auto" else transport)
        await here.shows(6 * len(sent))
    assert [text for text in await texts(here) if text.startswith("while")] == sent[::-1]


async def test_a_gateway_that_was_killed_and_began_anew_is_a_reset_not_silence(gateway: Gateway, visit: Visits) -> None:
    async with demo(gateway.url, gateway.url) as page_url:
        here = await visit(page_url)
        here.allow(WEBSOCKET_FAILED, RESOURCE_FAILED)
        await here.status("open", "websocket")
        await publish(page_url, "lost with the store, seen before")
        await here.shows(1)
        await asyncio.to_thread(gateway.kill)
        await here.status("waiting")
        await asyncio.to_thread(gateway.start)
        await here.status("open", within=45)
        await here.page.wait_for_selector("#messages li.reset:has-text('user:demo')")
        await publish(page_url, "of the new store")
        await here.shows(2)
        assert (await texts(here))[0] == "of the new store"


async def test_the_page_fits_a_phone_and_the_dark(page_url: str, visit: Visits) -> None:
    here = await visit(page_url, viewport={"width": 360, "height": 740}, color_scheme="dark")
    await here.status("open")
    await here.page.click("#burst")
    await here.shows(5)
    await here.page.click("summary")
    assert await here.page.evaluate("document.documentElement.scrollWidth") == 360
    outside = "all => all.filter(one => one.getBoundingClientRect().right > 360 - 12).length"
    assert await here.page.eval_on_selector_all("section, section > *, form > *, pre", outside) == 0
    ground = await here.page.evaluate("getComputedStyle(document.body).backgroundColor")
    await here.page.click("#theme")
    assert await here.page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
