"""Whether a node should get traffic, and why not: `/readyz` and the gauge say the same."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from gateway.app import create_app
from gateway.metrics import PULSE, Metrics
from gateway.node import Node
from gateway.settings import Settings


async def asked(node: Node, http: httpx.AsyncClient) -> tuple[int, bool, list[str], int]:
    """The status, `ready`, the reasons, and the gauge."""
    answer = await http.get("/readyz")
    told: dict[str, Any] = answer.json()
    assert all(each["detail"] for each in told["reasons"])
    gauge = b"\nringcast_ready 1.0\n" in node.metrics.exposition()
    return answer.status_code, told["ready"], [each["reason"] for each in told["reasons"]], int(gauge)


async def test_a_node_tells_why_it_should_get_no_traffic() -> None:
    app = create_app(Settings())
    node: Node = app.state.node
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        status, ready, reasons, gauge = await asked(node, http)
        assert (status, ready, gauge) == (503, False, 0)
        assert {"store", "revocations"} <= set(reasons)
        async with app.router.lifespan_context(app):
            assert await asked(node, http) == (200, True, [], 1)
            node.metrics.late = 60.0
            assert await asked(node, http) == (503, False, ["overloaded"], 0)
            node.metrics.late = 0.0
            node.depart()
            assert await asked(node, http) == (503, False, ["draining"], 0)


async def test_a_late_event_loop_is_noticed_and_forgotten() -> None:
    metrics = Metrics()
    pulse = asyncio.create_task(metrics.take_the_pulse())
    try:
        await asyncio.sleep(PULSE / 2)
        time.sleep(0.8)  # noqa: ASYNC251 - it is to hold the loop
        async with asyncio.timeout(10):
            while metrics.late < 0.6:  # noqa: ASYNC110 - it is a number, as /readyz asks it
                await asyncio.sleep(0.001)
            while metrics.late > 0.3:  # noqa: ASYNC110
                await asyncio.sleep(PULSE)
    finally:
        pulse.cancel()
    assert metrics.loop_lag.sum > 0.6
