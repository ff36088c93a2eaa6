"""The short way of the plain token: it accepts what PyJWT accepts, as that reads it, and leaves the rest to it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.hs256 import Secret

KEY = b"k" * 32
SECRET = Secret(KEY)
NOW = time.time()


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: bytes, payload: bytes, key: bytes = KEY) -> str:
    text = f"{encoded(header)}.{encoded(payload)}"
    return f"{text}.{encoded(hmac.digest(key, text.encode(), hashlib.sha256))}"


def theirs(token: str) -> dict[str, Any] | None:
    options: Any = {"verify_exp": False, "verify_sub": False}
    try:
        return jwt.decode(token, KEY, algorithms=["HS256"], leeway=30, options=options)
    except (jwt.PyJWTError, RecursionError):
        return None


def test_a_plain_token_is_told() -> None:
    claims = {"sub": "ann", "exp": NOW + 60, "iat": int(NOW), "channels": ["topic:*"], "iss": "us"}
    for headers in (None, {"kid": "7"}, {"typ": "JWT"}):
        token = jwt.encode(claims, KEY, "HS256", headers=headers)
        assert SECRET.claims_of(token, NOW) == theirs(token) == claims


@pytest.mark.parametrize(
    "claims",
    [{"aud": "x"}, {"nbf": 0}, {"jti": 5}, {"iat": NOW + 999}, {"iat": "1"}, {"iat": True}, {"iat": 1e300}],
)
def test_claims_that_have_rules_are_left_to_the_library(claims: dict[str, Any]) -> None:
    assert SECRET.claims_of(signed(b'{"alg":"HS256"}', json.dumps(claims).encode()), NOW + 30) is None


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"none"}', b'{"alg":"HS512"}', b'{"alg":"hs256"}', b'{"alg":"HS256","crit":["exp"]}', b"[]", b"{}", b"",
        b'{"alg":"HS256","b64":false}', b'{"alg":"HS256","jwk":{}}', b'{"alg":["HS256"]}', b"\xff",
        b'{"alg":"HS256","kid":"' + b"x" * 300 + b'"}', b"[" * 100,
    ],
)  # fmt: skip
def test_any_other_header_is_left_to_the_library(header: bytes) -> None:
    assert SECRET.claims_of(signed(header, b"{}"), NOW) is None


def test_whoever_has_not_the_key_is_not_told() -> None:
    token = signed(b'{"alg":"HS256"}', b'{"sub":"ann"}', b"x" * 32)
    assert SECRET.claims_of(token, NOW) is None
    genuine = signed(b'{"alg":"HS256"}', b'{"sub":"ann"}')
    for at in range(len(genuine)):
        for other in "Aa_-.":
            if genuine[at] != other:
                assert SECRET.claims_of(genuine[:at] + other + genuine[at + 1 :], NOW) is None


@pytest.mark.parametrize("payload", [b"[]", b"1", b"", b"{", b'{"a":NaN}', b"[" * 5000, b'{"sub":"\xff"}'])
def test_what_is_no_object_is_left_to_the_library(payload: bytes) -> None:
    assert SECRET.claims_of(signed(b'{"alg":"HS256"}', payload), NOW) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6,
)  # fmt: skip
FIELDS = st.sampled_from(["alg", "typ", "kid", "crit", "b64"])
NAMES = st.sampled_from(["sub", "exp", "iat", "nbf", "aud", "jti", "iss", "channels", "x", "crit"])


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(NAMES, JSON, max_size=5), st.dictionaries(FIELDS, st.sampled_from(["HS256", "none", 1, None])))
def test_nothing_is_accepted_that_the_library_refuses(claims: dict[str, Any], header: dict[str, Any]) -> None:
    for head in ({"alg": "HS256"}, header):
        token = signed(json.dumps(head).encode(), json.dumps(claims).encode())
        found = SECRET.claims_of(token, time.time() + 30)
        if found is not None:
            assert found == theirs(token)
