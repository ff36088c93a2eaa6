"""Tokens of every kind, genuine and forged, and one table of attacks for all who let somebody in."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.identity import Identity
from gateway.settings import Settings
from gateway.tickets import Tickets

KEY = "backend-key"
SECRET = "the shared secret of these tests, which is long enough"
ISSUER = "https://idp.example"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def claims(**more: Any) -> dict[str, Any]:
    body = {"sub": "42", "exp": int(time.time()) + 600, "iss": ISSUER, "channels": ["topic:*"]} | more
    return {name: value for name, value in body.items() if value is not None}


def segment(value: bytes | dict[str, Any]) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(
    header: dict[str, Any], body: dict[str, Any] | bytes | None = None, *, secret: bytes = SECRET.encode(),
    digest: str = "sha256",
) -> str:  # fmt: skip
    """A token with any header and body at all, its HMAC right."""
    signed = f"{segment(header)}.{segment(claims() if body is None else body)}"
    return f"{signed}.{segment(hmac.digest(secret, signed.encode(), digest))}"


def signed(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(claims(**more), key, algorithm=algorithm, headers=headers)


def swapped(token: str, **more: Any) -> str:
    """Another body under the signature of `token`."""
    head, _, mac = token.split(".")
    return f"{head}.{segment(claims(**more))}.{mac}"


def _neighbour(character: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(character) ^ 1]


RSA_PEM = pem(RSA)
OTHER = rsa.generate_private_key(65537, 2048)
OTHER_JWK = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER.public_key()))
RSA_DER = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

# What a gateway must refuse whose keys are KEY, SECRET and RSA, and whose issuer is ISSUER. Each is right in all else.
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
    "HS384 with the secret": lambda: forged({"alg": "HS384"}, digest="sha384"),
    "HS512 with the secret": lambda: forged({"alg": "HS512"}, digest="sha512"),
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
    "spare bits of the signature set": lambda: signed()[:-1] + _neighbour(signed()[-1]),
    "future nbf": lambda: signed(nbf=int(time.time()) + 3600),
    "nbf that is no number": lambda: signed(nbf="tomorrow"),
    "future iat": lambda: signed(iat=int(time.time()) + 3600),
    "wrong aud": lambda: signed(aud="somebody-else"),
    "wrong iss": lambda: signed(iss="https://evil.example"),
    "no iss": lambda: signed(iss=None),
    "a list of issuers": lambda: forged({"alg": "HS256"}, json.dumps(claims(iss=[ISSUER])).encode()),
    "oversize": lambda: signed(padding="x" * (8 << 10)),
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
    "the hash of an API key": lambda: hashlib.sha256(KEY.encode()).hexdigest(),
    "a ticket": lambda: Tickets(Settings(jwt_hmac_key=SECRET)).connect(Identity("user:42", "42")).text,
}  # fmt: skip
