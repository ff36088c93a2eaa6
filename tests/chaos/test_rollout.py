"""A rolling restart of three real nodes behind real balancers loses nothing, as `ringcast verify` sees it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.async_api import async_playwright

from gateway.verify.result import Result
from tests.browser.conftest import CHROMIUM, FLAGS, Visits
from tests.browser.subscriber import Subscriber, subscribe
from tests.browser.test_event_source import listen, ticket_for
from tests.support.balancers import Balancer
from tests.support.command import ROOT, environment
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer

NAMES = ("node-a", "node-b", "node-c")
CHANNEL = "topic:rollout"
BROWSED = f"{CHANNEL}-0"  # one of the canaries' channels, which browsers follow too
ACCEPT_RATE = 200  # connections a second that each node says it takes
AWAY = 2.0  # seconds without a connection, for 99 of 100 that move


@dataclass(frozen=True)
class Size:
    clients: int
    rate: int
    settings: dict[str, Any]


SHORT = Size(60, 40, {"drain_wait": "200ms", "drain": "1500ms"})
FULL = Size(1000, 100, {"drain_wait": "4s", "drain": "8s"})


@pytest.fixture(params=["redis", "nats"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    with RedisServer() if request.param == "redis" else NatsServer() as server:
        yield server.url


class Rollout:
    """Three nodes, nginx and HAProxy in front of them, and `verify` that watches them all restart."""

    def __init__(self, store: str, size: Size, folder: Path) -> None:
        self.size = size
        self.nodes = [
            Gateway(
                node=name, broker=store, trusted_proxies="127.0.0.1", accept_rate=ACCEPT_RATE, poll_wait="20s",
                allowed_origins="*", **size.settings,
            )
            for name in NAMES
        ]  # fmt: skip
        self.balancers: list[Balancer] = []
        self._begun, self._done = folder / "begun", folder / "done"

    async def open(self, stack: AsyncExitStack) -> None:
        for node in self.nodes:
            await stack.enter_async_context(node)
        ports = [node.port for node in self.nodes]
        self.balancers = [stack.enter_context(Balancer(name, ports)) for name in ("nginx", "haproxy")]

    async def watched(self) -> Result:
        command = f"touch {self._begun}; until [ -e {self._done} ]; do sleep 0.1; done"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", "verify", "--json", "--for", "2s", "--during", command,
            "--clients", str(self.size.clients), "--rate", str(self.size.rate), "--channel", CHANNEL,
            *(word for balancer in self.balancers for word in ("--url", balancer.url)),
            cwd=ROOT, env=environment({"RINGCAST_API_KEY": API_KEY}), stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said = asyncio.create_task(process.communicate())
        try:
            while not said.done() and not self._begun.exists():  # noqa: ASYNC110 - it is a shell that says so
                await asyncio.sleep(0.05)
            for node in self.nodes:
                if not said.done():
                    assert await asyncio.to_thread(node.stop, 60) == 0
                    await asyncio.to_thread(node.start)
        finally:
            self._done.touch()
            out, err = await said
        assert out, err.decode()
        result = msgspec.json.decode(out, type=Result)
        assert (process.returncode == 0) == result.ok
        return result

    def lost_nothing(self, result: Result) -> None:
        assert result.ok, result
        assert (result.lost, result.duplicated, result.reordered, result.unannounced, result.resets) == (0, 0, 0, 0, 0)
        assert result.broken == {}, "nobody is closed without a goodbye"
        assert result.canaries == dict.fromkeys(("ws", "sse", "poll", "eventsource"), self.size.clients // 4)
        assert result.reconnects >= self.size.clients * 3 // 4, "each stream was on a node that ended"
        assert set(result.reconnects_per_second) == set(NAMES)
        assert max(result.reconnects_per_second.values()) <= ACCEPT_RATE
        assert [node.complaints() for node in self.nodes] == [[], [], []]


async def test_a_rolling_restart_loses_nothing(tmp_path: Path) -> None:
    with RedisServer() as redis:
        async with AsyncExitStack() as stack:
            rollout = Rollout(redis.url, SHORT, tmp_path)
            await rollout.open(stack)
            rollout.lost_nothing(await rollout.watched())


@pytest.fixture
async def visit() -> AsyncIterator[Visits]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        visits = Visits(browser)
        yield visits
        await visits.close()
        await browser.close()


# What Chromium itself logs where a connection ends, or is refused by a node that has ended; no script can stop that.
QUIET = (r"Failed to load resource: ", r"WebSocket connection to '\S+/v1/ws\S*' failed: ")


@pytest.mark.chaos
async def test_a_thousand_clients_and_browsers_among_them_lose_nothing(
    store: str, tmp_path: Path, visit: Visits
) -> None:
    async with AsyncExitStack() as stack:
        rollout = Rollout(store, FULL, tmp_path)
        await rollout.open(stack)
        pages: list[Subscriber] = []
        bare = []
        for balancer in rollout.balancers:
            pages += [
                await subscribe(visit, balancer.url, channels=[BROWSED], allow=QUIET, transports=[transport])
                for transport in ("websocket", "sse", "longpoll")
            ]  # fmt: skip
            ticket = await asyncio.to_thread(ticket_for, rollout.nodes[0], BROWSED)
            bare.append(await listen(visit, balancer.url, ticket, "verify"))
        for subscriber in pages:
            await subscriber.until("status.state === 'open'")
        for here in bare:
            here.allow(*QUIET)
            await here.page.wait_for_function("seen.opens === 1")

        result = await rollout.watched()
        print(result)
        rollout.lost_nothing(result)
        assert result.repeated == 0, "a stream's last position is told before it is closed"
        assert result.away.p99 < AWAY

        async with rollout.nodes[0].api() as api:
            answer = await api.get("/v1/history", params={"channel": BROWSED, "since": "earliest", "limit": 100})
        sent = [message["offset"] for message in answer.raise_for_status().json()["messages"]]
        assert 10 < len(sent) < 100
        for subscriber in pages:
            await subscriber.got(len(sent))
            seen = await subscriber.seen()
            assert [message["offset"] for message in seen["messages"]] == sent
            assert seen["resets"] == seen["errors"] == []
            assert longest_away(seen["states"]) < AWAY
            await subscriber.call("ringcast.close()")
        for here in bare:
            await here.page.wait_for_function("count => seen.messages.length >= count", arg=len(sent))
            seen = await here.page.evaluate("seen")
            assert [message["offset"] for message in seen["messages"]] == sent
            assert seen["opens"] > 1
            assert seen["resets"] == 0
            await here.page.evaluate("source.close()")


def longest_away(states: list[dict[str, Any]]) -> float:
    """Seconds between a link that was open and the next one, at most."""
    longest, since = 0.0, None
    for state in states[next(n for n, state in enumerate(states) if state["state"] == "open") :]:
        if state["state"] == "open":
            longest = max(longest, 0.0 if since is None else (state["at"] - since) / 1000)
            since = None
        elif since is None:
            since = state["at"]
    return longest
