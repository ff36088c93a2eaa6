"""docs/protocol.md is true: its examples are sent to a running gateway, and what it shows as the answer comes."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.errors import KINDS
from gateway.message import encode_cursor
from tests.support.examples import HTTP, SCRIPTED, Comparison, Section, Step, bodies, sections
from tests.support.gateway import ROOT, Gateway
from tests.support.keys import API_KEY, token
from tests.support.sse import Event, Parser

PAGE = (ROOT / "docs" / "protocol.md").read_text()
SECTIONS = sections(PAGE)
WITHIN = 10.0
TOML = "[channels.room]\nkeyed = true\npresence = true\n"
UNASKED = {"ping", "ringcast.ping"}  # come when they are due, between any two frames


@pytest.fixture(scope="module")
def shared() -> Iterator[Gateway]:
    with Gateway(toml=TOML, heartbeat="1s", node="gateway-1") as gateway:
        yield gateway


class Run:
    """One section of the page against a gateway."""

    def __init__(self, gateway: Gateway, stack: AsyncExitStack) -> None:
        self.gateway = gateway
        self.stack = stack
        self.compare = Comparison({
            "<token>": token("ann", ["topic:*", "room:*"], ["topic:*"], info={"name": "Ann"}), "<api key>": API_KEY,
            "<new token>": token("ann", ["topic:*"], ["topic:*"], expires_in=1200),
        })  # fmt: skip
        self.http = gateway.api()
        self.http.headers.pop("Authorization")
        self.response: httpx.Response | None = None
        self.socket: ClientConnection | None = None
        self.events: AsyncIterator[Event] | None = None

    async def step(self, step: Step) -> None:
        shown = step.info in ("http response", "json ws-server", "json ws-close", "text event-stream")
        text = step.text if shown else self.compare.fill(step.text)
        await {
            "test": self.told, "http request": self.request, "http response": self.answer,
            "http websocket": self.handshake,
            "json ws-client": self.send, "json ws-server": self.receive, "json ws-close": self.closed,
            "text event-stream": self.stream,
        }[step.info](text)  # fmt: skip

    async def told(self, text: str) -> None:
        what, _, rest = text.partition(" ")
        if what == "publish":
            (await self.http.post("/v1/publish", json=json.loads(rest), headers={"Authorization": f"Bearer {API_KEY}"})
             ).raise_for_status()  # fmt: skip
        elif what == "drain":
            self.gateway.signal(signal.SIGTERM)
        else:
            raise AssertionError(f"nobody knows how to {text}")

    async def request(self, text: str) -> None:
        message = HTTP.parse(text)
        method, path, _ = message.start.split(" ")
        request = self.http.build_request(method, path, headers=message.headers, content=message.body or None)
        self.response = await self.http.send(request, stream=True)
        self.stack.push_async_callback(self.response.aclose)

    async def answer(self, text: str) -> None:
        shown, real = HTTP.parse(text), self.response
        assert real is not None, "an answer without a request"
        status = int(shown.start.split(" ")[1])
        assert real.status_code == status, (real.status_code, await real.aread())
        for name, value in shown.headers.items():
            assert name in real.headers, f"{name} is missing: {real.headers}"
            self.compare.check(value, real.headers[name], f".{name}")
        if real.headers.get("content-type", "").startswith("text/event-stream"):
            self.events = _events(real)
            return
        body = (await real.aread()).decode()
        self.compare.check(list(bodies(shown.body)), list(bodies(body)))

    async def handshake(self, text: str) -> None:
        message = HTTP.parse(text)
        path = message.start.split(" ")[1]
        headers = {k: v for k, v in message.headers.items() if k.startswith(("Auth", "Cookie", "Origin"))}
        protocols = [p.strip() for p in message.headers.get("Sec-WebSocket-Protocol", "").split(",") if p]
        self.socket = socket = await self.stack.enter_async_context(connect(
            self.gateway.ws_url + path, additional_headers=headers, subprotocols=protocols or None,  # type: ignore[arg-type]
            proxy=None, compression=None,
        ))  # fmt: skip
        assert socket.subprotocol == ("ringcast.v1" if "ringcast.v1" in protocols else None)

    async def send(self, text: str) -> None:
        assert self.socket is not None, "a frame before the handshake"
        await self.socket.send(text)

    async def receive(self, text: str) -> None:
        assert self.socket is not None, "a frame before the handshake"
        shown = json.loads(text)
        real = json.loads(await self.socket.recv())
        while real["type"] in UNASKED and shown["type"] != real["type"]:
            real = json.loads(await self.socket.recv())
        self.compare.check(shown, real)

    async def closed(self, text: str) -> None:
        assert self.socket is not None, "a close before the handshake"
        with pytest.raises(ConnectionClosed) as caught:
            await self.receive('{"type": "none"}')
        assert caught.value.rcvd is not None, "cut without a close frame"
        self.compare.check(json.loads(text), {"code": caught.value.rcvd.code, "reason": caught.value.rcvd.reason})

    async def stream(self, text: str) -> None:
        assert self.events is not None, "events before the request"
        parser = Parser()
        shown = list(parser.feed(text.encode() + b"\n"))
        for event in shown:
            real = await anext(self.events)
            while real.event in UNASKED and real.event != event.event:
                real = await anext(self.events)
            assert (event.data is None) == (real.data is None), f"{real}, the page shows {event}"
            if event.data is None or real.data is None:
                self.compare.check(event.last_id, real.last_id, ".cursor")
            else:
                assert event.event == real.event, f"{real}, the page shows {event}"
                self.compare.check(json.loads(event.data), json.loads(real.data))


async def _events(response: httpx.Response) -> AsyncIterator[Event]:
    parser = Parser()
    async for chunk in response.aiter_raw():
        for event in parser.feed(chunk):
            yield event


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
async def test_the_examples_are_true(section: Section, shared: Gateway) -> None:
    async with AsyncExitStack() as stack:
        gateway = shared
        if any(step.info == "test" and step.text == "drain" for step in section.steps):  # the shared one has to stay
            gateway = await stack.enter_async_context(Gateway(toml=TOML, node="gateway-1"))
        run = Run(gateway, stack)
        stack.push_async_callback(run.http.aclose)
        for step in section.steps:
            if step.info not in SCRIPTED | {"test"}:
                continue
            try:
                async with asyncio.timeout(WITHIN):
                    await run.step(step)
            except Exception as error:
                error.add_note(f"docs/protocol.md:{step.line}: {step.info}")
                raise
        run.compare.check_order()


def test_every_frame_has_an_example() -> None:
    shown = {
        json.loads(step.text)["type"]: step.info
        for section in SECTIONS for step in section.steps if step.info in ("json ws-client", "json ws-server")
    }  # fmt: skip
    assert set(shown) == {
        "connect", "subscribe", "unsubscribe", "ping", "publish",
        "welcome", "subscribed", "message", "reset", "unsubscribed", "published", "error", "pong", "goodbye",
    }  # fmt: skip


def test_the_table_of_codes_is_the_gateways() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (\d{4}) \|", PAGE, re.M)
    assert {code: (int(status), int(close)) for code, status, close in rows} == {
        code: (kind.status, kind.close) for code, kind in KINDS.items()
    }


def test_the_cursor_is_encoded_as_shown() -> None:
    positions, cursor = re.search(r"```json positions\n(.*?)```.*?```text cursor\n(.*?)\n```", PAGE, re.S).groups()  # type: ignore[union-attr]
    assert encode_cursor(json.loads(positions)) == cursor
    assert json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))) == json.loads(positions)


def test_every_test_that_the_guarantees_name_exists() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert named
    for path, name in named:
        assert (ROOT / path).exists(), path
        assert not name or re.search(rf"^ *(async )?def {name}\b", (ROOT / path).read_text(), re.M), (path, name)


def test_the_links_of_the_pages_lead_somewhere() -> None:
    for page in ("protocol.md", "guarantees.md", "relays.md", "operations.md"):
        text = (ROOT / "docs" / page).read_text()
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
            path = ROOT / "docs" / (target or page)
            assert path.exists(), target
            there = path.read_text() if anchor else ""
            titles = re.findall(r"^#+ (.*)$", there.lower(), re.M)
            assert not anchor or anchor in [re.sub(r"[^\w-]", "", title.replace(" ", "-")) for title in titles], target
