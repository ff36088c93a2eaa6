"""Who may use the console's part of the interface: the cookie on its own page's requests, there and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.gateway import Gateway
from tests.support.keys import API_KEY, bearer, token
from tests.support.redis import RedisServer

OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway(allowed_origins="https://app.example") as found:
        yield found
        assert API_KEY not in found.stderr


def login(gateway: Gateway) -> str:
    """The cookie that the key is exchanged for."""
    with gateway.http() as http:
        answer = http.post("/console/login", headers=bearer())
        assert answer.status_code == 204
        return answer.cookies["ringcast_operator"]


def status(gateway: Gateway, path: str, cookie: str, method: str = "GET", **headers: str) -> int:
    with httpx.Client(base_url=gateway.url, trust_env=False, timeout=30) as http:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = b'{"channel":"topic:a","event":"e","data":1}' if method == "POST" else None
        return http.request(
            method, path, headers={"Cookie": f"ringcast_operator={cookie}", **named}, content=content
        ).status_code


def test_the_cookie_counts_for_the_pages_own_requests_alone(gateway: Gateway) -> None:
    cookie = login(gateway)
    nodes, publish = "/console/v1/nodes", "/console/v1/publish"
    assert status(gateway, nodes, cookie, Sec_Fetch_Site="same-origin") == 200
    assert status(gateway, publish, cookie, "POST", Origin=gateway.url) == 200
    for headers in (
        {}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "none"}, {"Origin": "https://app.example"},
        {"Origin": "null"}, {"Origin": gateway.url.replace("http:", "https:")},
    ):  # fmt: skip
        assert status(gateway, nodes, cookie, **headers) == 403, headers
        assert status(gateway, publish, cookie, "POST", **headers) == 403, headers


@pytest.mark.parametrize("path", ["/v1/nodes", "/metrics", "/v1/history?channel=topic:a", "/consolex/v1/nodes"])
def test_it_reaches_nothing_beside_the_console(gateway: Gateway, path: str) -> None:
    assert status(gateway, path, login(gateway), Sec_Fetch_Site="same-origin") in (401, 404)


@pytest.mark.parametrize("path", ["tickets", "disconnect", "jobs", "ws", "poll"])
def test_the_console_reaches_only_what_it_uses(gateway: Gateway, path: str) -> None:
    assert status(gateway, f"/console/v1/{path}", login(gateway), Sec_Fetch_Site="same-origin") == 404


def test_only_an_api_key_opens_it(gateway: Gateway) -> None:
    with gateway.http() as http:
        http.headers.clear()
        assert http.post("/console/login").status_code == 401
        for wrong in (token("ann", ["*"]), "not a key"):
            answer = http.post("/console/login", headers=bearer(wrong))
            assert answer.status_code in (401, 403)
            assert "set-cookie" not in answer.headers
        assert http.get("/console/session", headers=OWN).json() == {"operator": None}
        assert http.get("/console/v1/sse?channels=ringcast:nodes").status_code == 401
    # And the gateway's own table is for the console alone, whatever a key or a token may do elsewhere.
    with gateway.http() as http:
        for credentials in (bearer(), bearer(token("ann", ["*"]))):
            assert http.get("/v1/sse?channels=ringcast:nodes", headers=credentials).status_code == 403
            assert http.get("/v1/history?channel=ringcast:operators", headers=credentials).status_code == 403
        cookie = {"Cookie": f"ringcast_operator={login(gateway)}", **OWN}
        http.headers.clear()
        assert http.get("/console/v1/history?channel=ringcast:operators", headers=cookie).status_code == 403


def test_the_page_may_run_its_own_scripts_alone(gateway: Gateway) -> None:
    with gateway.http() as http:
        answer = http.get("/console", follow_redirects=True)
        assert answer.url.path == "/console/"
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "<script>" not in answer.text
        assert "style=" not in answer.text


def test_every_node_knows_an_operator_until_the_key_is_taken_away() -> None:
    with RedisServer() as redis:
        with Gateway(broker=redis.url, node="a") as first, Gateway(broker=redis.url, node="b") as second:
            cookie = login(first)
            assert status(second, "/console/v1/nodes", cookie, Sec_Fetch_Site="same-origin") == 200
        with Gateway(broker=redis.url, node="a", api_keys="another-key-of-the-tests") as again:
            assert status(again, "/console/v1/nodes", cookie, Sec_Fetch_Site="same-origin") == 401


def test_where_there_are_no_keys_it_is_open_to_this_machine() -> None:
    with Gateway(api_keys=None, jwt_hmac_key=None) as gateway, gateway.http() as http:
        http.headers.clear()
        assert http.get("/console/session", headers=OWN).json() == {"operator": "anonymous"}
        assert http.get("/console/v1/nodes", headers=OWN).status_code == 200
        elsewhere = {"Origin": "https://evil.example"}
        assert http.get("/console/v1/nodes", headers=elsewhere).status_code == 403
