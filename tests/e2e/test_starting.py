"""A node that starts: nobody gets in before it can serve, and a store that stays away keeps nobody from asking it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.support.cable import Cable
from tests.support.clients import WebSocketClient, connect
from tests.support.gateway import READY_WITHIN, ROOT, Gateway, GatewayFailed, free_port
from tests.support.keys import API_KEY
from tests.support.redis import RedisServer

LOST = "the connection to Redis is lost"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def cable() -> AsyncIterator[Cable]:
    """To a store that is not there yet."""
    async with Cable(free_port()) as found:
        yield found


async def first_of(gateway: Gateway) -> WebSocketClient:
    """The first client that is not refused by the kernel."""
    url = f"http://127.0.0.1:{gateway.port}"
    async with asyncio.timeout(2 * READY_WITHIN):
        while True:
            try:
                client = await connect("websocket", url, API_KEY, channels=["topic:first"])
            except OSError:
                await asyncio.sleep(0.01)
            else:
                assert isinstance(client, WebSocketClient)
                return client


async def ends_without_a_word(gateway: Gateway, starting: asyncio.Task[Gateway]) -> None:
    gateway.signal(signal.SIGTERM)
    assert await asyncio.to_thread(gateway.process.wait, 15) == 0, gateway.stderr
    with pytest.raises(GatewayFailed, match="instead of its ready line it wrote ''"):
        await starting


async def test_nobody_is_let_in_before_the_store_was_heard(redis: RedisServer, cable: Cable) -> None:
    gateway = Gateway(broker=f"redis://127.0.0.1:{cable.port}")
    try:
        starting = asyncio.create_task(asyncio.to_thread(gateway.start))
        coming = asyncio.create_task(first_of(gateway))
        await gateway.until(lambda: gateway.stderr.count(LOST) >= 3, within=READY_WITHIN)
        cable.far = redis.port
        async with await coming as client:
            await client.joined()
        await starting
        assert "cannot serve yet" not in gateway.stderr
    finally:
        await asyncio.to_thread(gateway.close)


async def test_a_node_whose_store_stays_away_says_so_itself(cable: Cable) -> None:
    gateway = Gateway(broker=f"redis://127.0.0.1:{cable.port}")
    try:
        starting = asyncio.create_task(asyncio.to_thread(gateway.start))
        await gateway.until(lambda: "listening though it cannot serve yet" in gateway.stderr, within=READY_WITHIN)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as http:
            assert (await http.get("/livez")).status_code == 200
            answer = await http.get("/readyz")
        assert answer.status_code == 503
        reasons = {each["reason"]: each["detail"] for each in answer.json()["reasons"]}
        assert reasons["store"] == "the broker's store does not answer"
        await ends_without_a_word(gateway, starting)
    finally:
        await asyncio.to_thread(gateway.close)


async def test_one_that_is_ended_while_it_waits_for_its_store_ends_at_once(cable: Cable) -> None:
    gateway = Gateway(broker=f"redis://127.0.0.1:{cable.port}", drain_wait="60s", grace_period="90s")
    try:
        starting = asyncio.create_task(asyncio.to_thread(gateway.start))
        await gateway.until(lambda: LOST in gateway.stderr, within=READY_WITHIN)
        await ends_without_a_word(gateway, starting)
    finally:
        await asyncio.to_thread(gateway.close)


def test_a_node_loads_no_clients() -> None:
    """They and what draws on terminals would take a fifth of its start."""
    code = (
        "import sys, gateway.cli, gateway.config, gateway.server\n"
        "print({'httpx', 'rich', 'publisher', 'gateway.client'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
