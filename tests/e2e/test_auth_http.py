"""Whoever must not come in is refused alike at every door of a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect as websocket

from tests.support.forge import ATTACKS, KEY, RSA, signed
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY
from tests.support.knock import DOORS, SETTINGS, ask, knock, present, travels


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=10) as client:
        yield client


@pytest.mark.parametrize("door", DOORS)
async def test_good_credentials_open_every_door(gateway: Gateway, http: httpx.AsyncClient, door: str) -> None:
    for token in (signed(publish=["topic:*"]), signed(RSA, "RS256", publish=["topic:*"]), KEY):
        status, _ = await present(gateway, http, door, token)
        assert status in (200, 204)


@pytest.mark.parametrize("name", ATTACKS)
async def test_every_attack_is_refused_alike_everywhere(gateway: Gateway, http: httpx.AsyncClient, name: str) -> None:
    token = ATTACKS[name]()
    for door in DOORS:
        if travels(door, token):
            expected = await present(gateway, http, door, "garbage")
            assert expected[0] == (4001 if door.startswith("ws") else 401)
            assert await present(gateway, http, door, token) == expected, door


async def test_a_refusal_says_how_to_log_in_and_what_it_is(http: httpx.AsyncClient) -> None:
    for headers in ({}, {"Authorization": "Bearer garbage"}, {"Authorization": "Basic Zm9vOmJhcg=="}):
        for path in ("publish", "poll", "sse"):
            response = await ask(http, path, headers)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert response.headers["Content-Type"] == "application/problem+json"
            assert response.json()["code"] == "unauthorised"


@pytest.mark.parametrize("door", DOORS)
async def test_expired_and_unusable_tokens_are_told_apart(gateway: Gateway, http: httpx.AsyncClient, door: str) -> None:
    socketed = door.startswith("ws")
    status, said = await present(gateway, http, door, signed(exp=int(time.time()) - 3600))
    assert status == (4200 if socketed else 401)
    assert b"expired" in said
    status, said = await present(gateway, http, door, signed(sub="4*"))
    assert status == (4001 if socketed else 401)
    assert b"`sub`" in said


@pytest.mark.parametrize(
    ("claims", "channel"),
    [
        ({"sub": "4"}, "user:42"),
        ({"sub": "4"}, "user:\u0664"),  # ARABIC-INDIC DIGIT FOUR
        ({"sub": "4"}, "jobs:42"),
        ({"sub": "m\u00fcller"}, "user:mu\u0308ller"),  # decomposed
        ({"sub": "4", "channels": ["user:4"]}, "user:42"),
        ({"sub": "4", "channels": ["topic:*"]}, "topics:a"),
        ({"sub": "4", "channels": ["*"]}, "ringcast:tickets"),
        ({"sub": "4", "channels": ["ringcast:*", "ringcast:user.4"]}, "ringcast:user.4"),
    ],
)
async def test_nobody_reads_what_the_token_does_not_name(
    gateway: Gateway, http: httpx.AsyncClient, claims: dict[str, Any], channel: str
) -> None:
    token = signed(**claims)
    bearer = {"Authorization": f"Bearer {token}"}
    for path in ("poll", "sse"):
        response = await ask(http, path, bearer, channels=channel)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    for path in ("history", "snapshot"):
        response = await http.get(f"/v1/{path}", headers=bearer, params={"channel": channel})
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    ticket = await http.post("/v1/tickets", headers=bearer, json={"use": "stream", "channels": [channel]})
    assert (ticket.status_code, ticket.json()["code"]) == (403, "forbidden")
    status, _ = await knock(gateway, first={"type": "connect", "token": token, "channels": [channel]}, query="")
    assert status == 4003
    async with websocket(f"{gateway.ws_url}/v1/ws", additional_headers=bearer, proxy=None) as connection:
        assert json.loads(await connection.recv())["type"] == "welcome"
        await connection.send(json.dumps({"type": "subscribe", "id": 1, "channel": channel}))
        refusal = json.loads(await asyncio.wait_for(connection.recv(), 10))
        assert (refusal["type"], refusal["id"], refusal["code"]) == ("error", 1, "forbidden")


async def test_nobody_publishes_what_the_token_does_not_grant(gateway: Gateway, http: httpx.AsyncClient) -> None:
    for token, channel, code in (
        (signed(), "topic:a", "forbidden"),
        (signed(publish=["topic:a*"]), "topic:b", "forbidden"),
        (signed(sub="4", publish=["topic:*"]), "user:4", "forbidden"),
        (signed(publish=["*"]), "jobs:42", "reserved_channel"),
        (signed(publish=["*", "presence:*"]), "presence:topic:a", "reserved_channel"),
        (KEY, "ringcast:tickets", "reserved_channel"),
        (KEY, "jobs:42", "reserved_channel"),
    ):
        response = await ask(http, "publish", {"Authorization": f"Bearer {token}"}, channel=channel)
        assert (response.status_code, response.json()["code"]) == (403, code)
        bearer = {"Authorization": f"Bearer {token}"}
        async with websocket(f"{gateway.ws_url}/v1/ws", additional_headers=bearer, proxy=None) as connection:
            assert json.loads(await connection.recv())["type"] == "welcome"
            await connection.send(json.dumps({"type": "publish", "id": 1, "channel": channel, "event": "e", "data": 1}))
            refusal = json.loads(await asyncio.wait_for(connection.recv(), 10))
            assert (refusal["type"], refusal["code"]) == ("error", code)


async def test_failed_logins_shut_the_address_out_and_no_header_makes_another_of_it() -> None:
    async with (
        Gateway(failed_logins=3) as gateway,
        httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http,
    ):
        for n in range(3):
            headers = {"Authorization": "Bearer garbage", "X-Forwarded-For": f"192.0.2.{n}"}
            assert (await ask(http, "poll", headers)).status_code == 401
        response = await ask(http, "poll", {"Authorization": f"Bearer {API_KEY}", "X-Forwarded-For": "192.0.2.99"})
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "1"
        assert response.json()["code"] == "rate_limited"
        for _ in range(3):  # one login a second is forgiven; three at once are more than that
            status, _said = await knock(gateway, headers={"Authorization": "Bearer garbage"})
        assert status == 4103


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_serving_others_without_keys_is_refused_with_a_way_to_make_one(host: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RINGCAST_")}
    command = [sys.executable, "-m", "gateway.cli", "serve", "--host", host, "--port", "0"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert not ended.stdout
    assert "without keys" in ended.stderr
    assert "RINGCAST_API_KEYS" in ended.stderr
    assert "secrets.token_urlsafe(32)" in ended.stderr
    assert "Traceback" not in ended.stderr
