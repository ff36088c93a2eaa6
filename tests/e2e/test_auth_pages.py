"""Which web pages may use a gateway: cookies, origins, CORS, and the gateway of a machine of one's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.forge import KEY, signed
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY
from tests.support.knock import APP, EXPOSED, SETTINGS, ask, knock

FOREIGN = [
    "https://evil.example", "http://app.example", "https://app.example:8443", "https://app.example.evil.example",
    "null",
]  # fmt: skip

@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=10) as client:
        yield client


async def test_a_cookie_counts_only_with_a_good_origin(gateway: Gateway, http: httpx.AsyncClient) -> None:
    cookie = {"Cookie": f"session={signed(publish=['topic:*'])}"}
    for origin in (APP, gateway.url):
        for path in ("publish", "poll", "sse"):
            assert (await ask(http, path, cookie | {"Origin": origin})).status_code in (200, 204)
        assert (await knock(gateway, headers=cookie, origin=origin))[0] == 200
    for path in ("publish", "poll", "sse"):
        bad: list[dict[str, str]] = [{}, {"Sec-Fetch-Site": "cross-site"}, *({"Origin": origin} for origin in FOREIGN)]
        for headers in bad:
            response = await ask(http, path, cookie | headers)
            assert (response.status_code, response.json()["code"]) == (403, "forbidden_origin")
        assert (await ask(http, path, cookie | {"Sec-Fetch-Site": "same-origin"})).status_code in (200, 204)
    assert (await knock(gateway, headers=cookie))[0] == 403


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_foreign_page_opens_no_websocket_whatever_it_presents(gateway: Gateway, origin: str) -> None:
    assert (await knock(gateway, origin=origin))[0] == 403
    assert (await knock(gateway, origin=origin, subprotocols=[f"bearer.{signed()}"]))[0] == 403
    assert (await knock(gateway, origin=origin, headers={"Authorization": f"Bearer {KEY}"}))[0] == 403
    assert (await knock(gateway, origin=origin, headers={"Cookie": f"session={signed()}"}))[0] == 403


@pytest.mark.parametrize("path", ["publish", "poll", "sse", "tickets"])
async def test_cors_names_the_one_origin_that_asks_and_is_allowed(http: httpx.AsyncClient, path: str) -> None:
    wanted = {"Method": "POST", "Headers": "authorization,content-type"}
    preflight = {f"Access-Control-Request-{name}": value for name, value in wanted.items()}
    allowed = await http.options(f"/v1/{path}", headers=preflight | {"Origin": APP})
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == APP
    assert allowed.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Origin" in allowed.headers["Vary"]
    for origin in FOREIGN:
        refused = await http.options(f"/v1/{path}", headers=preflight | {"Origin": origin})
        assert "Access-Control-Allow-Origin" not in refused.headers


@pytest.mark.parametrize("token", [KEY, "garbage"])
async def test_cors_lets_the_allowed_page_read_answers_and_refusals(http: httpx.AsyncClient, token: str) -> None:
    for path in ("publish", "poll", "sse"):
        response = await ask(http, path, {"Authorization": f"Bearer {token}", "Origin": APP})
        assert response.headers["Access-Control-Allow-Origin"] == APP
        exposed = {name.strip() for name in response.headers["Access-Control-Expose-Headers"].split(",")}
        assert exposed == EXPOSED
        for origin in FOREIGN:
            response = await ask(http, path, {"Authorization": f"Bearer {token}", "Origin": origin})
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_a_gateway_without_keys_serves_this_machine_alone() -> None:
    async with (
        Gateway(api_keys=None, jwt_hmac_key=None) as gateway,
        httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http,
    ):
        for path in ("publish", "poll", "sse"):
            assert (await ask(http, path)).status_code in (200, 204)
            for headers in ({"Host": f"evil.example:{gateway.port}"}, {"Origin": "https://evil.example"}):
                assert (await ask(http, path, headers)).json()["code"] == "forbidden_origin"
        assert (await knock(gateway))[0] == 200
        assert (await knock(gateway, origin="https://evil.example"))[0] == 403


async def test_a_page_behind_a_proxy_that_ends_tls_keeps_its_own_origin() -> None:
    told = {"X-Forwarded-Proto": "https", "Authorization": f"Bearer {API_KEY}"}
    async with Gateway(trusted_proxies="127.0.0.0/8") as gateway:
        page = gateway.url.replace("http:", "https:")  # the proxy passes the Host header on
        assert (await knock(gateway, headers=told, origin=page))[0] == 200
        assert (await knock(gateway, headers=told, origin=gateway.url))[0] == 403
        assert (await knock(gateway, headers=told, origin="https://evil.example"))[0] == 403
    async with Gateway() as gateway:  # trusts nobody
        assert (await knock(gateway, headers=told, origin=gateway.url.replace("http:", "https:")))[0] == 403


async def test_failed_logins_behind_a_trusted_proxy_are_counted_by_the_client() -> None:
    async with (
        Gateway(trusted_proxies="127.0.0.0/8", failed_logins=1) as gateway,
        httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http,
    ):
        for client in ("192.0.2.1", "192.0.2.2"):
            bad = {"Authorization": "Bearer garbage", "X-Forwarded-For": f"198.51.100.9, {client}"}
            assert [(await ask(http, "poll", bad)).status_code for _ in range(2)] == [401, 429]
        good = {"Authorization": f"Bearer {API_KEY}", "X-Forwarded-For": "192.0.2.3"}
        assert (await ask(http, "poll", good)).status_code in (200, 204)


async def test_two_authorization_headers_are_refused(gateway: Gateway, http: httpx.AsyncClient) -> None:
    twice = [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")]
    assert (await http.get("/v1/poll", headers=twice, params={"channels": "topic:a", "wait": "0"})).status_code == 401
