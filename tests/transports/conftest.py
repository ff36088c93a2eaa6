"""One suite for all transports, on real gateways. After each test the gateway must hold nothing of it any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import PATHS, running
from tests.support.clients import TRANSPORTS
from tests.support.gateway import OWN_PARTITIONS, Gateway

SETTLED_WITHIN = 10.0  # seconds; a linger and what a busy machine needs
CHANNELS = """
[channels.short]
history_ttl = "2s"
[channels.few]
history_size = 10
[channels.deep]
history_size = 100000
[channels.table]
keyed = true
"""


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"heartbeat": "1s", "linger": "100ms", "toml": CHANNELS}


@pytest.fixture(scope="module", params=PATHS)
def native(request: pytest.FixtureRequest) -> bool:
    """Whether the module's gateways take connections below ASGI, or through it."""
    return bool(request.param)


@pytest.fixture(scope="module")
def gateway(native: bool, gateway_settings: dict[str, Any]) -> Iterator[Gateway]:
    with running(native=native, **gateway_settings) as gateway:
        yield gateway


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Holdings = Callable[[], dict[str, float]]


@pytest.fixture(scope="module")
def holdings(gateway: Gateway) -> Iterator[Holdings]:
    """Asks the module's gateway what it holds; in the end it must follow no partition for its clients any more."""
    names = ("sessions", "subscriptions", "connections", "channels", "partitions", "tasks")
    with gateway.http() as http:

        def ask() -> dict[str, float]:
            found = dict.fromkeys(names, 0.0)
            for family in text_string_to_metric_families(http.get("/metrics").raise_for_status().text):
                name = family.name.removeprefix("ringcast_")
                if name in found:
                    found[name] = sum(sample.value for sample in family.samples)
            return found

        def settled() -> None:
            end = time.monotonic() + SETTLED_WITHIN
            while (found := ask()["partitions"]) != OWN_PARTITIONS:
                assert time.monotonic() < end, f"the gateway follows {found} partitions"
                time.sleep(0.05)

        settled()
        yield ask
        settled()


@pytest.fixture(scope="module")
def holdings_when_idle(gateway: Gateway, holdings: Holdings) -> dict[str, float]:
    """Of a gateway that serves nobody: its own few tasks, and one that sse-starlette starts with the first stream."""
    before = holdings() | {"partitions": 0.0}
    assert {name for name, value in before.items() if value} == {"tasks"}
    with gateway.http() as http, http.stream("POST", "/v1/sse", json={"channels": ["topic:first"]}) as response:
        assert response.status_code == 200
    return before | {"tasks": before["tasks"] + 1}


@pytest.fixture(autouse=True)
async def holds_nothing_afterwards(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Sessions, subscriptions, connections and tasks go with the clients; partitions linger, see `holdings`."""
    if "gateway" not in request.fixturenames:
        yield
        return
    ask: Holdings = request.getfixturevalue("holdings")
    idle: dict[str, float] = request.getfixturevalue("holdings_when_idle")
    yield
    end = time.monotonic() + SETTLED_WITHIN
    while (found := await asyncio.to_thread(ask)) | {"partitions": 0} != idle:
        assert time.monotonic() < end, f"the gateway still holds {found}"
        await asyncio.sleep(0.02)
