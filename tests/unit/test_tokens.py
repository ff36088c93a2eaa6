"""Which tokens are genuine, what they may claim, and a table of attacks that all end in the same answer."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.auth import Authenticator, Credentials
from gateway.errors import Problem
from gateway.settings import ConfigError, Settings
from tests.support.door import HERE, authenticator, login, refusal
from tests.support.forge import ATTACKS, EC, ED, ISSUER, RSA, RSA_PEM, SECRET, claims, forged, pem, signed

ATTACKED = authenticator(jwt_public_key=RSA_PEM, jwt_issuer=ISSUER)


@pytest.mark.parametrize(
    ("settings", "key", "algorithm"),
    [
        ({"jwt_hmac_key": SECRET}, SECRET, "HS256"),
        ({"jwt_public_key": pem(RSA)}, RSA, "RS256"),
        ({"jwt_public_key": pem(EC)}, EC, "ES256"),
        ({"jwt_public_key": pem(ED)}, ED, "EdDSA"),
    ],
)
async def test_a_token_is_accepted_under_each_kind_of_key(settings: dict[str, str], key: Any, algorithm: str) -> None:
    auth = Authenticator(Settings(**settings))  # type: ignore[arg-type]
    identity = await login(auth, signed(key, algorithm, publish=["room:1"]))
    assert identity is not None
    assert (identity.principal, identity.subject, identity.server) == ("user:42", "42", False)
    assert identity.may_read("topic:news")
    assert identity.may_publish("room:1")


async def test_several_sources_of_keys_serve_at_once() -> None:
    auth = authenticator(jwt_public_key=pem(RSA))
    for token in (signed(), signed(RSA, "RS256")):
        identity = await login(auth, token)
        assert identity is not None
        assert identity.subject == "42"


async def test_a_public_key_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(pem(ED))
    assert await login(authenticator(jwt_public_key=str(file)), signed(ED, "EdDSA"))


async def test_a_session_lasts_as_long_as_its_token_is_accepted() -> None:
    exp = int(time.time()) - 10
    identity = await login(authenticator(), signed(exp=exp))  # within the leeway
    assert identity is not None
    assert identity.expires == exp + 30
    assert (await refusal(authenticator(jwt_leeway=5), signed(exp=exp))).code == "token_expired"


async def test_a_token_without_an_expiry_needs_the_setting() -> None:
    token = signed(exp=None)
    problem = await refusal(authenticator(), token)
    assert problem.code == "unauthorised"
    assert "exp" in problem.detail
    identity = await login(authenticator(jwt_require_exp=False), token)
    assert identity is not None
    assert identity.expires is None


async def test_audience_and_issuer_are_what_the_settings_say() -> None:
    auth = authenticator(jwt_audience="ringcast", jwt_issuer=ISSUER)
    good: dict[str, Any] = {"aud": ["other", "ringcast"], "iss": ISSUER}
    assert await login(auth, signed(**good))
    for wrong in ({"aud": "other"}, {"aud": None}, {"aud": 7}, {"iss": ISSUER + "/"}, {"iss": None}):
        assert (await refusal(auth, signed(**(good | wrong)))).code == "unauthorised"
    assert await login(authenticator(), signed(iss="anyone"))
    assert (await refusal(authenticator(), signed(aud="other"))).code == "unauthorised"  # made for somebody else


async def test_a_token_like_the_attacks_but_without_one_is_accepted() -> None:
    assert await login(ATTACKED, signed())
    assert await login(ATTACKED, signed(RSA, "RS256"))
    assert await login(ATTACKED, forged({"alg": "HS256"}))


@pytest.mark.parametrize("name", ATTACKS)
async def test_every_attack_gets_the_same_answer(
    name: str, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = ATTACKS[name]()
    expected = (await refusal(ATTACKED, "garbage")).as_json()
    places: list[dict[str, Any]] = [
        {"authorization": f"Bearer {token}"}, {"subprotocols": ["ringcast.v1", f"bearer.{token}"], "websocket": True},
        {"token": token, "websocket": True},
    ]  # fmt: skip
    for place in places:
        with pytest.raises(Problem) as refused:
            await ATTACKED.authenticate(Credentials(HERE, **place))
        problem = refused.value
        assert json.dumps(problem.as_json()) == json.dumps(expected)
        assert (problem.kind.status, problem.kind.close, problem.retry_after) == (401, 4001, None)
        assert problem.__cause__ is None
    assert len(token) < 5 or token not in caplog.text
    assert not recwarn.list


@pytest.mark.parametrize(
    "sub",
    [None, "", 42, True, [], ["42"], {}, "4*", "*", "4,user:5", "4 5", "job.7", "x" * 201, "4\0", "\u202e24", "\ud800"],
)
@pytest.mark.parametrize("key", [SECRET, RSA])
async def test_a_genuine_token_whose_user_makes_no_channel_is_told_so(sub: Any, key: Any) -> None:
    body = {name: value for name, value in claims().items() if name != "sub"} | ({} if sub is None else {"sub": sub})
    token = jwt.encode(body, key, algorithm="HS256" if key is SECRET else "RS256")
    problem = await refusal(authenticator(jwt_public_key=RSA_PEM), token)
    assert (problem.code, problem.kind.close) == ("unauthorised", 4001)
    assert "`sub`" in problem.detail


@pytest.mark.parametrize("claim", ["channels", "publish"])
@pytest.mark.parametrize("patterns", ["topic:*", ["topic:*x"], ["us*"], [7], {"topic:*": 1}, ["*"] * 1001])
async def test_a_genuine_token_with_malformed_patterns_is_told_so(claim: str, patterns: Any) -> None:
    problem = await refusal(authenticator(), signed(**{claim: patterns}))
    assert problem.code == "unauthorised"
    assert f"`{claim}`" in problem.detail


@pytest.mark.parametrize("exp", ["tomorrow", True, [], {}, float("inf"), float("nan")])
async def test_an_expiry_that_is_no_time_is_refused(exp: Any) -> None:
    assert (await refusal(authenticator(), signed(exp=exp))).code == "unauthorised"


async def test_an_expired_token_is_told_apart_and_only_when_all_else_is_right() -> None:
    auth = authenticator(jwt_issuer=ISSUER)
    old: dict[str, Any] = {"exp": int(time.time()) - 3600}
    problem = await refusal(auth, signed(**old))
    assert (problem.code, problem.kind.close) == ("token_expired", 4200)
    for token in (signed("x" * 40, **old), signed(iss="https://evil.example", **old), signed(**old)[:-4]):
        assert (await refusal(auth, token)).code == "unauthorised"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"jwt_hmac_key": RSA_PEM}, "jwt_public_key"),
        ({"jwt_public_key": "/nowhere/key.pem"}, "/nowhere/key.pem"),
        ({"jwt_public_key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"}, "not a PEM public key"),
        ({"jwt_public_key": pem(rsa.generate_private_key(65537, 1024))}, "2048 bits"),
        ({"jwt_public_key": pem(ec.generate_private_key(ec.SECP384R1()))}, "P-256"),
        (
            {"jwt_public_key": EC.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()},
            "holds a private key",
        ),
        ({"jwks_url": ["http://idp.example/jwks.json"]}, "must be https"),
        ({"jwks_url": ["https://me:secret@idp.example/jwks.json"]}, "must not hold a user"),
        ({"ticket_ttl": 301}, "idempotency_window"),
    ],
)
def test_a_key_that_cannot_work_is_refused_at_start(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        authenticator(**settings)
    assert "secret@" not in str(error.value)
    assert "MII" not in str(error.value)
