"""Tickets at a real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.forge import KEY, signed
from tests.support.gateway import Gateway
from tests.support.knock import SETTINGS, ask, knock, present, ticket


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=10) as client:
        yield client


async def test_of_twenty_who_bring_one_ticket_at_once_one_gets_in(gateway: Gateway, http: httpx.AsyncClient) -> None:
    for _ in range(3):
        text = await ticket(http, use="connect")
        query = f"channels=topic:a&ticket={text}"
        sockets, responses = await asyncio.gather(
            asyncio.gather(*(knock(gateway, query=query) for _ in range(10))),
            asyncio.gather(*(ask(http, path, ticket=text) for path in ("sse", "poll") for _ in range(5))),
        )
        statuses = [status for status, _ in sockets] + [response.status_code for response in responses]
        assert sum(status in (200, 204) for status in statuses) == 1
        assert sum(status in (401, 4001) for status in statuses) == 19


async def test_a_spent_ticket_is_refused_like_any_other(gateway: Gateway, http: httpx.AsyncClient) -> None:
    text = await ticket(http, use="connect")
    assert (await knock(gateway, query=f"ticket={text}"))[0] == 200
    for bad in (text, text[:-1], "garbage", "rct1.e30." + "A" * 43, signed(), KEY):
        assert await knock(gateway, query=f"ticket={bad}") == await present(gateway, http, "ws header", "garbage")
        response = await ask(http, "poll", ticket=bad)
        assert (response.status_code, response.content) == await present(gateway, http, "poll", "garbage")


async def test_a_stream_ticket_comes_back_and_reads_its_channels_alone(http: httpx.AsyncClient) -> None:
    text = await ticket(http, use="stream", channels=["topic:a", "user:42"])
    for _ in range(3):
        assert (await ask(http, "sse", ticket=text, channels="topic:a,user:42")).status_code == 200
    for channel in ("topic:b", "jobs:42", "user:43"):
        for path in ("sse", "poll"):
            assert (await ask(http, path, ticket=text, channels=channel)).json()["code"] == "forbidden"
    assert (await ask(http, "publish", ticket=text)).json()["code"] == "forbidden"


async def test_an_expired_ticket_says_so(gateway: Gateway, http: httpx.AsyncClient) -> None:
    text = await ticket(http, use="stream", channels=["topic:a"], ttl="100ms")
    with httpx.Client(base_url=gateway.url, trust_env=False) as client:
        await gateway.until(lambda: client.get("/v1/poll", params={"ticket": text, "wait": "0"}).status_code == 401)
    assert (await ask(http, "poll", ticket=text)).json()["code"] == "token_expired"
    assert (await knock(gateway, query=f"ticket={text}"))[0] == 4200


async def test_a_token_in_the_url_is_refused_with_a_better_way(gateway: Gateway, http: httpx.AsyncClient) -> None:
    for path in ("publish", "poll", "sse"):
        response = await ask(http, path, token=signed())
        assert response.status_code == 400
        assert "ticket" in response.json()["detail"]
    assert (await knock(gateway, query=f"token={signed()}"))[0] == 4008
