"""What is presented, who that is, and a table of attacks that all end in the same answer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway.auth import Authenticator, Credentials
from gateway.errors import Problem
from gateway.identity import Identity
from gateway.settings import ConfigError, Settings
from gateway.tokens import MAX_TOKEN

SECRET = "the shared secret of these tests, which is long enough"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
HERE = "192.0.2.1"
ISSUER = "https://idp.example"


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def authenticator(**settings: Any) -> Authenticator:
    defaults: dict[str, Any] = {"api_keys": ["backend-key"], "jwt_hmac_key": SECRET, "failed_logins": 1_000_000}
    return Authenticator(Settings(**(defaults | settings)))


async def login(auth: Authenticator, token: str, **rest: Any) -> Identity | None:
    return await auth.authenticate(Credentials(HERE, authorization=f"Bearer {token}", **rest))


async def refusal(auth: Authenticator, bearer: str | None = None, **rest: Any) -> Problem:
    with pytest.raises(Problem) as refused:
        await auth.authenticate(Credentials(HERE, authorization=bearer and f"Bearer {bearer}", **rest))
    return refused.value


def claims(**more: Any) -> dict[str, Any]:
    body = {"sub": "42", "exp": int(time.time()) + 600, "iss": ISSUER, "channels": ["topic:*"]} | more
    return {name: value for name, value in body.items() if value is not None}


def segment(value: bytes | dict[str, Any]) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: dict[str, Any], body: dict[str, Any] | bytes | None = None, secret: bytes = SECRET.encode()) -> str:
    """A token with any header and body at all, its HMAC-SHA256 right."""
    signed = f"{segment(header)}.{segment(claims() if body is None else body)}"
    return f"{signed}.{segment(hmac.digest(secret, signed.encode(), 'sha256'))}"


def signed(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(claims(**more), key, algorithm=algorithm, headers=headers)


# --- what is accepted


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


# --- attacks

RSA_PEM, EC_PEM = pem(RSA), pem(EC)
OTHER = rsa.generate_private_key(65537, 2048)
OTHER_JWK = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER.public_key()))
RSA_DER = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def swapped(token: str, **more: Any) -> str:
    """Another body under the signature of `token`."""
    head, _, mac = token.split(".")
    return f"{head}.{segment(claims(**more))}.{mac}"


ATTACKS: dict[str, Callable[[], str]] = {
    **{
        f"alg {spelling!r} {how}": lambda spelling=spelling, mac=mac: (  # type: ignore[misc]
            f"{segment({'alg': spelling, 'typ': 'JWT'})}.{segment(claims())}.{mac}"
        )
        for spelling in ("none", "None", "NONE", "nOnE", " none", "none\x00", "", None, [], ["none"], {"a": "none"}, 0)
        for how, mac in (("unsigned", ""), ("with a signature", "AAAA"))
    },
    "no alg": lambda: forged({"typ": "JWT"}),
    "alg none under a right HMAC": lambda: forged({"alg": "none"}),
    "HS256 with the RSA public key as the secret": lambda: forged({"alg": "HS256"}, secret=RSA_PEM.encode()),
    "HS256 with the RSA public key, stripped": lambda: forged({"alg": "HS256"}, secret=RSA_PEM.strip().encode()),
    "HS256 with the RSA public key in DER": lambda: forged({"alg": "HS256"}, secret=RSA_DER),
    "HS256 with an empty secret": lambda: forged({"alg": "HS256"}, secret=b""),
    "RS256 named over an HMAC of the RSA public key": lambda: forged({"alg": "RS256"}, secret=RSA_PEM.encode()),
    "RS256 named over an HMAC of the secret": lambda: forged({"alg": "RS256"}),
    "HS384 with the secret": lambda: signed(algorithm="HS384"),
    "HS512 with the secret": lambda: signed(SECRET * 2, "HS512"),
    "RS512 with the right key": lambda: signed(RSA, "RS512"),
    "PS256 with the right key": lambda: signed(RSA, "PS256"),
    "ES256 with a key nobody knows": lambda: signed(EC, "ES256"),
    "lower-case alg": lambda: forged({"alg": "hs256"}),
    "another secret": lambda: signed("x" * 40),
    "another RSA key": lambda: signed(OTHER, "RS256"),
    "kid with a path": lambda: forged({"alg": "HS256", "kid": "../../../../../../dev/null"}, secret=b""),
    "kid with a NUL": lambda: forged({"alg": "HS256", "kid": "/dev/null\x00"}, secret=b""),
    "kid with a URL": lambda: signed(OTHER, "RS256", {"kid": "http://127.0.0.1:9/jwks.json"}),
    "kid with SQL": lambda: forged({"alg": "HS256", "kid": "' UNION SELECT 'x' -- "}, secret=b"x"),
    "kid that is no string": lambda: forged({"alg": "HS256", "kid": {"$ne": ""}}),
    "jku": lambda: signed(OTHER, "RS256", {"jku": "http://127.0.0.1:9/jwks.json", "kid": "1"}),
    "x5u": lambda: signed(OTHER, "RS256", {"x5u": "file:///etc/ssl/cert.pem"}),
    "x5c": lambda: signed(OTHER, "RS256", {"x5c": [base64.b64encode(b"a certificate").decode()]}),
    "embedded jwk": lambda: signed(OTHER, "RS256", {"jwk": OTHER_JWK}),
    "embedded symmetric jwk": lambda: forged(
        {"alg": "HS256", "jwk": {"kty": "oct", "k": segment(b"mine")}}, secret=b"mine"
    ),
    "crit that nobody knows": lambda: forged({"alg": "HS256", "crit": ["exp2"], "exp2": 1}),
    "b64 false": lambda: forged({"alg": "HS256", "b64": False, "crit": ["b64"]}),
    "altered body": lambda: swapped(signed(), sub="43"),
    "signature of another token": lambda: swapped(signed(sub="43")),
    "cut signature": lambda: signed()[:-4],
    "no signature": lambda: signed().rsplit(".", 1)[0] + ".",
    "spare bits of the signature set": lambda: signed()[:-1] + _next(signed()[-1]),
    "future nbf": lambda: signed(nbf=int(time.time()) + 3600),
    "nbf that is no number": lambda: signed(nbf="tomorrow"),
    "future iat": lambda: signed(iat=int(time.time()) + 3600),
    "wrong aud": lambda: signed(aud="somebody-else"),
    "wrong iss": lambda: signed(iss="https://evil.example"),
    "no iss": lambda: signed(iss=None),
    "a list of issuers": lambda: forged({"alg": "HS256"}, json.dumps(claims(iss=[ISSUER])).encode()),
    "oversize": lambda: signed(padding="x" * MAX_TOKEN),
    "deeply nested header": lambda: f"{segment(b'[' * 5000)}.{segment(claims())}.AAAA",
    "deeply nested body": lambda: forged({"alg": "HS256"}, b'{"sub":' + b"[" * 5000),
    "a number of 5,000 digits": lambda: forged({"alg": "HS256"}, b'{"sub":"42","exp":' + b"9" * 5000 + b"}"),
    "body that is a list": lambda: forged({"alg": "HS256"}, b"[]"),
    "body that is no JSON": lambda: forged({"alg": "HS256"}, b"sub=42"),
    "body that is no UTF-8": lambda: forged({"alg": "HS256"}, b'{"sub":"\xff"}'),
    "header that is no JSON": lambda: f"{segment(b'alg')}.{segment(claims())}.AAAA",
    "header that is a list": lambda: f"{segment(b'[]')}.{segment(claims())}.AAAA",
    "bad base64": lambda: "!!!.???.###",
    "padded base64": lambda: signed() + "=",
    "base64 with + and /": lambda: "+/+/.+/+/.+/+/",
    "white space inside": lambda: signed().replace(".", ". ", 1),
    "four segments": lambda: signed() + ".AAAA",
    "five segments, as a JWE": lambda: "AAAA.AAAA.AAAA.AAAA.AAAA",
    "two segments": lambda: "AAAA.AAAA",
    "dots alone": lambda: "..",
    "garbage": lambda: "garbage",
    "nothing": lambda: "",
    "a NUL": lambda: "\x00",
    "a lone surrogate": lambda: "\ud800.\ud800.\ud800",
    "full-width letters of a key": lambda: "".join(chr(ord(c) + 0xFEE0) for c in "backend-key"),
    "an API key and a bit": lambda: "backend-key2",
    "an API key but for a bit": lambda: "backend-ke",
    "an API key in other letters": lambda: "Backend-Key",
    "an API key with a NUL": lambda: "backend-key\x00",
    "two API keys": lambda: "backend-key,backend-key",
    "the hash of an API key": lambda: hashlib.sha256(b"backend-key").hexdigest(),
    "a ticket": lambda: ATTACKED.tickets.connect(Identity("user:42", "42")).text,
}  # fmt: skip


def _next(character: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(character) ^ 1]


ATTACKED: Authenticator = authenticator(jwt_public_key=RSA_PEM, jwt_issuer=ISSUER)


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


async def test_tokens_sent_twice_or_in_the_url_are_refused_unread() -> None:
    auth = authenticator()
    assert (await refusal(auth, signed(), token=signed())).code == "bad_request"
    assert (await refusal(auth, None, subprotocols=["bearer.a", "bearer.b"])).code == "bad_request"
    assert (await refusal(auth, signed(), ticket="rct1.a.b")).code == "bad_request"
    problem = await refusal(auth, None, query_token=signed())
    assert problem.code == "bad_request"
    assert "token_in_query" in problem.detail


# --- keys that cannot work


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
