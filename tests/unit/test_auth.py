"""What is presented, where and from which page, and who that is."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from gateway.auth import Authenticator, Credentials
from gateway.errors import Problem
from gateway.identity import Identity
from gateway.settings import Settings
from tests.support.door import HERE, authenticator, login, refusal
from tests.support.forge import RSA_PEM, SECRET, signed


async def test_an_api_key_is_a_server_however_it_is_written_in_the_settings() -> None:
    hashed = hashlib.sha256(b"second-key").hexdigest()
    auth = authenticator(api_keys=["backend-key", f"sha256:{hashed}", "dotted.api.key"])
    for key in ("backend-key", "second-key", "dotted.api.key"):
        identity = await login(auth, key)
        assert identity is not None
        assert identity.server
        assert identity.principal == "key:" + hashlib.sha256(key.encode()).hexdigest()[:8]
        assert identity.own_channels == ()
    assert (await refusal(auth, hashed)).code == "unauthorised"
    assert (await refusal(auth, f"sha256:{hashed}")).code == "unauthorised"


@pytest.mark.parametrize(
    "place",
    [
        {"authorization": "Bearer {}"},
        {"authorization": "bearer  {}"},
        {"subprotocols": ["ringcast.v1", "bearer.{}"], "websocket": True},
        {"token": "{}", "websocket": True},
        {"query_token": "{}"},
    ],
)
async def test_each_place_a_token_may_travel_in(place: dict[str, Any]) -> None:
    token = signed()
    filled: dict[str, Any] = {
        name: [each.format(token) for each in value] if isinstance(value, list)
        else value.format(token) if isinstance(value, str) else value
        for name, value in place.items()
    }  # fmt: skip
    identity = await authenticator(token_in_query=True).authenticate(Credentials(HERE, **filled))
    assert identity is not None
    assert identity.subject == "42"


async def test_nothing_presented_is_nobody_yet() -> None:
    auth = authenticator()
    assert await auth.authenticate(Credentials(HERE)) is None
    assert await auth.authenticate(Credentials(HERE, authorization="Basic cHJveHk6cHJveHk=")) is None
    assert await auth.authenticate(Credentials(HERE, subprotocols=["ringcast.v1"], websocket=True)) is None
    assert await auth.authenticate(Credentials(HERE, cookies={"session": signed()})) is None  # no cookie is configured


async def test_tokens_sent_twice_or_in_the_url_are_refused_unread() -> None:
    auth = authenticator()
    assert (await refusal(auth, signed(), token=signed())).code == "bad_request"
    assert (await refusal(auth, None, subprotocols=["bearer.a", "bearer.b"])).code == "bad_request"
    assert (await refusal(auth, signed(), ticket="rct1.a.b")).code == "bad_request"
    problem = await refusal(auth, None, query_token=signed())
    assert problem.code == "bad_request"
    assert "token_in_query" in problem.detail


# --- cookies and origins

APP = "https://app.example"


@pytest.mark.parametrize(
    ("presented", "code"),
    [
        ({"origin": APP}, None),
        ({"origin": APP, "websocket": True}, None),
        ({"origin": "https://rt.example"}, None),
        ({"fetch_site": "same-origin"}, None),  # a page's GET to its own origin has no Origin
        ({}, "forbidden_origin"),
        ({"fetch_site": "same-site"}, "forbidden_origin"),
        ({"fetch_site": "cross-site"}, "forbidden_origin"),
        ({"fetch_site": "same-origin", "websocket": True}, "forbidden_origin"),
        ({"origin": "https://evil.example", "fetch_site": "same-origin"}, "forbidden_origin"),
        ({"origin": "null"}, "forbidden_origin"),
        ({"origin": "http://rt.example"}, "forbidden_origin"),
        ({"origin": "https://evil.example", "websocket": True}, "forbidden_origin"),
        ({"websocket": True}, "forbidden_origin"),
    ],
)
async def test_a_cookie_counts_only_from_a_named_origin(presented: dict[str, Any], code: str | None) -> None:
    auth = authenticator(jwt_cookie="session", allowed_origins=[APP])
    request = {"host": "rt.example", "scheme": "https", "cookies": {"session": signed(), "other": "x"}} | presented
    if code is None:
        identity = await auth.authenticate(Credentials(HERE, **request))
        assert identity is not None
        assert identity.subject == "42"
    else:
        assert (await refusal(auth, None, **request)).code == code


async def test_a_token_outranks_the_cookie() -> None:
    auth = authenticator(jwt_cookie="session")
    identity = await login(auth, signed(sub="7"), cookies={"session": signed()}, origin="https://evil.example")
    assert identity is not None
    assert identity.subject == "7"


async def test_a_foreign_page_cannot_open_a_websocket_even_with_a_token() -> None:
    auth = authenticator(allowed_origins=[APP])
    request: dict[str, Any] = {"websocket": True, "host": "rt.example", "scheme": "wss"}
    assert await login(auth, signed(), origin=APP, **request)
    assert await login(auth, signed(), **request)  # not a browser
    for origin in ("https://evil.example", "null", APP + ".evil.example", ""):
        assert (await refusal(auth, signed(), origin=origin, **request)).code == "forbidden_origin"
        assert (await refusal(auth, None, origin=origin, **request)).code == "forbidden_origin"
    assert await login(auth, signed(), origin="https://evil.example", host="rt.example")  # HTTP: CORS decides


async def test_only_origins_that_are_named_are_trusted_with_cookies() -> None:
    auth = authenticator(allowed_origins=["*"])
    assert auth.origin_allowed("https://anyone.example", "rt.example", "https")
    assert not auth.origin_trusted("https://anyone.example", "rt.example", "https")
    assert auth.origin_trusted("https://rt.example", "rt.example", "https")


# --- no keys at all


async def test_without_keys_this_machine_is_trusted_and_nobody_else() -> None:
    auth = Authenticator(Settings(allowed_origins=["http://localhost:3000"]))
    assert auth.open
    for local in (
        Credentials("127.0.0.1", host="localhost:8000"),
        Credentials("::1", host="[::1]:8000"),
        Credentials("127.0.0.1", host="127.0.0.1:8000", authorization="Bearer anything"),
        Credentials("127.0.0.1", host="localhost:8000", origin="http://localhost:8000", websocket=True),
        Credentials("127.0.0.1", host="localhost:8000", origin="http://localhost:3000"),
    ):
        identity = await auth.authenticate(local)
        assert identity is not None
        assert (identity.principal, identity.server) == ("anonymous", True)
    for foreign in (
        Credentials("127.0.0.1", host="evil.example:8000"),  # DNS rebinding
        Credentials("127.0.0.1", host="evil.example:8000", origin="http://evil.example:8000"),
        Credentials("127.0.0.1", host="localhost:8000", origin="https://evil.example"),
        Credentials("127.0.0.1", host="localhost:8000", origin="http://localhost:8001"),
        Credentials("127.0.0.1", host="localhost:8000", origin="null"),
        Credentials("127.0.0.1", host=None),
        Credentials("192.0.2.1", host="localhost:8000"),
    ):
        with pytest.raises(Problem) as refused:
            await auth.authenticate(foreign)
        assert refused.value.code == "forbidden_origin"


async def test_without_keys_the_wildcard_lets_no_page_in() -> None:
    auth = Authenticator(Settings(allowed_origins=["*"]))
    foreign = Credentials("127.0.0.1", host="localhost:8000", origin="https://evil.example")
    with pytest.raises(Problem) as refused:
        await auth.authenticate(foreign)
    assert refused.value.code == "forbidden_origin"
    assert not auth.origin_allowed("https://evil.example", "localhost:8000", "http")


# --- failed logins


async def test_failed_logins_are_counted_by_address_and_then_nothing_is_looked_at() -> None:
    auth = authenticator(failed_logins=3)
    for _ in range(3):
        assert (await refusal(auth, "guess")).code == "unauthorised"
    problem = await refusal(auth, "backend-key")
    assert problem.code == "rate_limited"
    assert problem.retry_after == 1
    assert await auth.authenticate(Credentials("192.0.2.2", authorization="Bearer backend-key"))
    assert await auth.authenticate(Credentials(HERE)) is None


async def test_an_expired_or_unusable_token_is_no_failed_login() -> None:
    auth = authenticator(failed_logins=1)
    for _ in range(3):
        assert (await refusal(auth, signed(exp=1))).code == "token_expired"
        assert "`sub`" in (await refusal(auth, signed(sub="4*"))).detail
    assert await login(auth, signed())


# --- secrets stay secret


async def test_no_repr_shows_a_secret() -> None:
    auth = authenticator(jwt_public_key=RSA_PEM, jwt_cookie="session")
    token = signed()
    presented = Credentials(
        HERE, authorization=f"Bearer {token}", subprotocols=[f"bearer.{token}"], token=token, ticket=token,
        query_token=token, cookies={"session": token},
    )  # fmt: skip
    identities = [await login(auth, token), await login(auth, "backend-key")]
    ticket = auth.tickets.connect(Identity("user:42", "42"))
    shown = f"{presented!r} {presented} {identities!r} {auth._tokens._keys!r} {ticket!r} {vars(auth)!r}"
    for secret in (token, "backend-key", SECRET, ticket.text):
        assert secret not in shown
    assert f"{presented!r}".startswith(f"<Credentials from {HERE}: authorization, subprotocols")
