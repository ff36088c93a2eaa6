"""Debian's Chromium, driven by Playwright; pages that know what they may complain of; the demo's backend."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from starlette.types import ASGIApp

from client_demo.backend import Config, create_app
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, HMAC_KEY
from tests.support.proxy import Proxy

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.")

# What the browser itself logs of a connection that a test makes fail; no script can keep it from that.
WEBSOCKET_403 = r"WebSocket connection to '\S+/v1/ws\S*' failed: .*Unexpected response code: 403"
WEBSOCKET_FAILED = r"WebSocket connection to '\S+/v1/ws\S*' failed: "
CORS = r"Access to fetch at '\S+/v1/(sse|poll)\S*' from origin '\S+' has been blocked by CORS policy"  # a firewall
RESOURCE_403 = r"Failed to load resource: the server responded with a status of 403 \(Forbidden\) \S+/v1/(sse|poll)"
ICON = r"Failed to load resource: the server responded with a status of 404 \(Not Found\) \S+/favicon.ico"
RESOURCE_401 = r"Failed to load resource: the server responded with a status of 401 \(Unauthorized\) \S+/v1/(sse|poll)"
RESOURCE_504 = r"Failed to load resource: the server responded with a status of 504 \(Gateway Timeout\) \S+/v1/poll"
RESOURCE_FAILED = r"Failed to load resource: net::ERR_\w+ \S+/v1/(sse|poll)"


class Visit:
    """One page in a fresh profile. When it is left, every complaint must have been allowed, and no token in a URL."""

    def __init__(self, context: BrowserContext, page: Page) -> None:
        self.context = context
        self.page = page
        self.urls: list[str] = []
        self._complaints: list[str] = []
        self._allowed: list[str] = []
        page.on("console", lambda message: self._console(message.type, f"{message.text} {message.location['url']}"))
        page.on("pageerror", lambda error: self._complaints.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("websocket", lambda websocket: self.urls.append(websocket.url))

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self._complaints.append(text)

    def allow(self, *patterns: str) -> None:
        """The browser may log these: connections that this test makes fail on purpose."""
        self._allowed += patterns

    def check(self) -> None:
        strange = [text for text in self._complaints if not any(re.match(allowed, text) for allowed in self._allowed)]
        assert not strange, strange
        assert not [url for url in self.urls if JWT.search(url)]

    async def status(self, state: str, transport: str | None = None, within: float = 15) -> None:
        """Wait until the demo's page shows this state."""
        selector = f"#state[data-state={state}]" + (f"[data-transport={transport}]" if transport else "")
        await self.page.wait_for_selector(selector, timeout=1000 * within)

    async def shows(self, count: int, within: float = 10) -> None:
        """Wait until the page has got so many notifications; more are too many."""
        await self.page.wait_for_function(
            "count => Number(document.getElementById('count').textContent) >= count", arg=count, timeout=1000 * within
        )
        assert await self.page.inner_text("#count") == str(count)


class Visits:
    """Opens pages; closes them, and checks what they said."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._stack = AsyncExitStack()

    async def __call__(self, url: str, **context: Any) -> Visit:
        made = await self._browser.new_context(**context)
        self._stack.push_async_callback(made.close)
        visit = Visit(made, await made.new_page())
        self._stack.callback(visit.check)
        await visit.page.goto(url)
        return visit

    async def close(self) -> None:
        await self._stack.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser: Browser) -> AsyncIterator[Visits]:
    """Ask for it last: pages are closed before what they are connected to."""
    visits = Visits(browser)
    yield visits
    await visits.close()


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(gateway: Gateway) -> AsyncIterator[Proxy]:
    async with Proxy(gateway.port) as proxy:
        yield proxy


@asynccontextmanager
async def serving(server: uvicorn.Server, listener: socket.socket) -> AsyncIterator[None]:
    """Run a uvicorn server beside the test, whose process gets its signals' handlers back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            assert not task.done()
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await task
        for number, handler in handlers.items():
            signal.signal(number, handler)


def listening() -> tuple[socket.socket, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def demo(gateway: str, public: str, queue: str | None = None) -> AsyncIterator[str]:
    """The demo's backend, publishing to `gateway`, its page connecting to `public`; yields the page's address."""
    with TemporaryDirectory(prefix="ringcast-jobs-") as folder:  # no worker looks into it, unless one is told of it
        config = Config(gateway, public, hmac_key=HMAC_KEY, api_key=API_KEY, queue=queue or folder)
        listener, url = listening()
        app: ASGIApp = create_app(config)
        async with serving(uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on")), listener):
            yield url


@pytest_asyncio.fixture(loop_scope="module")
async def page_url(gateway: Gateway, proxy: Proxy) -> AsyncIterator[str]:
    """The demo's page, whose way to the gateway leads through the proxy."""
    async with demo(gateway.url, proxy.url) as url:
        yield url


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"allowed_origins": "*", "heartbeat": "1s", "jwt_leeway": "0s"}
