"""Keys from a URL, fetched from a real HTTP server on this machine."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.auth import Authenticator, Credentials
from gateway.errors import Problem
from gateway.identity import Identity
from gateway.jwks import MAX_BYTES, MAX_KEYS, Jwks
from gateway.keys import json_web_key
from gateway.settings import Settings

RSA = rsa.generate_private_key(65537, 2048)
RSA2 = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()

Answer = tuple[int, dict[str, str], bytes]


class Server:
    """Serves `answer` to each GET and counts them; `hold` keeps answers back."""

    def __init__(self) -> None:
        self.answer: Answer = (404, {}, b"")
        self.requests = 0
        self.hold = threading.Event()
        self.hold.set()
        self.asked = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests += 1
                server.asked.set()
                server.hold.wait(10)
                status, headers, body = server.answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/jwks.json"

    def publish(self, *keys: dict[str, Any]) -> None:
        self.answer = (200, {"Content-Type": "application/json"}, json.dumps({"keys": keys}).encode())

    def close(self) -> None:
        self.hold.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def jwk(key: Any, kid: str | None = None, **more: Any) -> dict[str, Any]:
    algorithms: list[tuple[type, Any]] = [
        (rsa.RSAPrivateKey, jwt.algorithms.RSAAlgorithm),
        (ec.EllipticCurvePrivateKey, jwt.algorithms.ECAlgorithm),
        (ed25519.Ed25519PrivateKey, jwt.algorithms.OKPAlgorithm),
    ]
    algorithm = next(algorithm for kind, algorithm in algorithms if isinstance(key, kind))
    body: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    body.pop("key_ops", None)
    return body | ({} if kid is None else {"kid": kid}) | more


def signed(key: Any, algorithm: str, kid: str | None = None) -> str:
    body = {"sub": "42", "exp": time.time() + 600}
    return jwt.encode(body, key, algorithm=algorithm, headers=None if kid is None else {"kid": kid})


def authenticator(*urls: str, clock: Clock | None = None, **settings: Any) -> Authenticator:
    """As from the settings, with JWK sets whose clock the test turns."""
    auth = Authenticator(Settings(jwks_url=list(urls), **settings))
    if clock is not None:
        auth._tokens._sets = [Jwks(url, clock=clock, timeout=2) for url in urls]
    return auth


async def login(auth: Authenticator, token: str) -> Identity | None:
    return await auth.authenticate(Credentials("192.0.2.1", authorization=f"Bearer {token}"))


async def refusal(auth: Authenticator, token: str) -> Problem:
    with pytest.raises(Problem) as refused:
        await login(auth, token)
    return refused.value


async def test_each_kind_of_key_is_found_by_its_id_and_without(server: Server) -> None:
    server.publish(jwk(RSA, "r"), jwk(EC, "e"), jwk(ED, "d"))
    auth = authenticator(server.url)
    for key, algorithm, kid in ((RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d")):
        assert await login(auth, signed(key, algorithm, kid))
        assert await login(auth, signed(key, algorithm))
    assert server.requests == 1


async def test_a_key_is_only_used_under_its_own_id_and_algorithm(server: Server) -> None:
    server.publish(jwk(RSA, "a"), jwk(RSA2, "b"), jwk(EC, "e"))
    auth = authenticator(server.url, jwt_hmac_key="the shared secret of these tests, long enough")
    for token in (
        signed(RSA, "RS256", "b"), signed(RSA, "RS512", "a"), signed(RSA, "PS256", "a"), signed(RSA, "RS256", "e"),
        jwt.encode({"sub": "42", "exp": time.time() + 600}, "x" * 40, algorithm="HS256", headers={"kid": "a"}),
    ):  # fmt: skip
        assert (await refusal(auth, token)).code == "unauthorised"


async def test_rotation_is_noticed_by_the_new_id(server: Server) -> None:
    clock = Clock()
    server.publish(jwk(RSA, "old"))
    auth = authenticator(server.url, clock=clock)
    assert await login(auth, signed(RSA, "RS256", "old"))
    server.publish(jwk(RSA2, "new"))
    clock.now += 10
    assert await login(auth, signed(RSA2, "RS256", "new"))
    assert (await refusal(auth, signed(RSA, "RS256", "old"))).code == "unauthorised"  # withdrawn
    assert server.requests == 2


async def test_rotation_is_noticed_without_ids_too(server: Server) -> None:
    clock = Clock()
    server.publish(jwk(RSA))
    auth = authenticator(server.url, clock=clock)
    assert await login(auth, signed(RSA, "RS256"))
    server.publish(jwk(RSA2))
    clock.now += 10
    assert await login(auth, signed(RSA2, "RS256"))


async def test_invented_ids_do_not_make_the_gateway_hammer_the_url(server: Server) -> None:
    clock = Clock()
    server.publish(jwk(RSA, "a"))
    auth = authenticator(server.url, clock=clock, failed_logins=1000)
    for n in range(50):
        assert (await refusal(auth, signed(RSA2, "RS256", f"invented-{n}"))).code == "unauthorised"
    assert server.requests == 1
    clock.now += 10
    await asyncio.gather(*(refusal(auth, signed(RSA2, "RS256", f"more-{n}")) for n in range(50)))
    assert server.requests == 2


async def test_no_key_of_a_set_is_asked_for_by_another_algorithm(server: Server) -> None:
    auth = authenticator(server.url)
    token = jwt.encode({"sub": "42"}, "x" * 40, algorithm="HS256")
    assert (await refusal(auth, token)).code == "unauthorised"
    assert server.requests == 0


async def test_a_set_that_went_away_goes_on_serving_and_nobody_waits_for_it(server: Server) -> None:
    clock = Clock()
    server.publish(jwk(RSA, "a"))
    auth = authenticator(server.url, clock=clock)
    assert await login(auth, signed(RSA, "RS256", "a"))
    server.answer = (503, {}, b"away")
    server.hold.clear()
    clock.now += 3600
    for _ in range(20):
        assert await login(auth, signed(RSA, "RS256", "a"))  # while the fetch hangs
    server.hold.set()
    [keys] = auth._tokens._sets
    await keys.renew()
    assert keys.failing
    assert await login(auth, signed(RSA, "RS256", "a"))
    problem = await refusal(auth, signed(RSA2, "RS256", "new"))  # perhaps good, so not "unauthorised"
    assert (problem.code, problem.kind.status, problem.retry_after) == ("unavailable", 503, 10)
    assert (await refusal(auth, signed(RSA2, "RS256"))).code == "unavailable"
    assert (await refusal(auth, signed(RSA2, "RS256", "a"))).code == "unauthorised"
    server.publish(jwk(RSA2, "new"))
    clock.now += 10
    assert await login(auth, signed(RSA2, "RS256", "new"))


async def test_a_set_that_was_never_there_is_asked_for_again_later() -> None:
    server = Server()
    clock = Clock()
    auth = authenticator(server.url, clock=clock)
    server.close()
    problem = await refusal(auth, signed(RSA, "RS256", "a"))
    assert problem.code == "unavailable"


async def test_one_set_that_is_away_does_not_hold_up_the_keys_of_another(server: Server) -> None:
    hanging = Server()
    hanging.hold.clear()
    server.publish(jwk(RSA, "a"))
    clock = Clock()
    auth = authenticator(hanging.url, server.url, clock=clock)
    [_, keys] = auth._tokens._sets
    await keys.renew()
    assert await login(auth, signed(RSA, "RS256", "a"))
    await auth.close()
    hanging.close()


async def test_a_waiter_that_leaves_does_not_take_the_fetch_from_the_others(server: Server) -> None:
    server.publish(jwk(RSA, "a"))
    server.hold.clear()
    auth = authenticator(server.url)
    waiting = [asyncio.create_task(login(auth, signed(RSA, "RS256", "a"))) for _ in range(3)]
    await asyncio.to_thread(server.asked.wait, 10)
    waiting[0].cancel()
    server.hold.set()
    left, *stayed = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError)
    assert all(isinstance(identity, Identity) for identity in stayed)
    assert server.requests == 1


BAD: dict[str, Callable[[], Answer]] = {
    "an error": lambda: (500, {}, b'{"keys": []}'),
    "a redirect": lambda: (302, {"Location": "http://127.0.0.1:9/"}, b'{"keys": []}'),
    "no JSON": lambda: (200, {}, b"<html>"),
    "no UTF-8": lambda: (200, {}, b'{"keys": ["\xff"]}'),
    "another object": lambda: (200, {}, b"{}"),
    "a list": lambda: (200, {}, b"[]"),
    "keys that are no list": lambda: (200, {}, b'{"keys": {}}'),
    "too much": lambda: (200, {}, b'{"keys": [' + b" " * MAX_BYTES + b"]}"),
    "too many keys": lambda: (200, {}, json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode()),
    "deep nesting": lambda: (200, {}, b"[" * 100_000),
    "a compressed body": lambda: (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_answer_changes_nothing(server: Server, name: str) -> None:
    clock = Clock()
    server.publish(jwk(RSA, "a"))
    keys = Jwks(server.url, clock=clock)
    await keys.renew()
    server.answer = BAD[name]()
    clock.now += 10
    await keys.renew()
    assert server.requests == 2
    assert keys.failing
    assert len(keys.held("RS256", "a")) == 1


async def test_a_set_without_a_usable_key_takes_the_old_ones_away(server: Server) -> None:
    clock = Clock()
    server.publish(jwk(RSA, "a"))
    keys = Jwks(server.url, clock=clock)
    await keys.renew()
    server.publish({"kty": "oct", "k": "AAAA", "kid": "a"})
    clock.now += 10
    await keys.renew()
    assert not keys.failing
    assert keys.held("RS256", "a") == keys.held("HS256", "a") == []


def private(key: rsa.RSAPrivateKey) -> dict[str, Any]:
    body: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True)
    return body


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("symmetric", {"kty": "oct", "k": "c2VjcmV0"}),
        ("symmetric, said to be for RS256", {"kty": "oct", "k": "c2VjcmV0", "alg": "RS256"}),
        ("RSA, said to be for HS256", jwk(RSA, alg="HS256")),
        ("RSA, said to be for none", jwk(RSA, alg="none")),
        ("RSA for another algorithm", jwk(RSA, alg="RS512")),
        ("P-256 for RS256", jwk(EC, alg="RS256")),
        ("for encryption", jwk(RSA, use="enc")),
        ("for signing alone", jwk(RSA, key_ops=["sign"])),
        ("private", private(RSA)),
        ("too short", jwk(rsa.generate_private_key(65537, 1024))),
        ("another curve", jwk(ec.generate_private_key(ec.SECP384R1()))),
        ("off the curve", jwk(EC, y="AAAA")),
        ("without modulus", {"kty": "RSA", "e": "AQAB"}),
        ("with an id that is no string", jwk(RSA) | {"kid": 7}),
        ("of no type", {"n": "AAAA"}),
        ("no object", "RSA"),
    ],
)  # fmt: skip
def test_a_member_that_is_not_for_checking_tokens_is_left_out(name: str, member: Any) -> None:
    assert json_web_key(member) is None


def test_a_stated_algorithm_that_fits_is_taken() -> None:
    fitting = [(RSA, "RS256", "RS256"), (EC, "ES256", "ES256"), (ED, "EdDSA", "EdDSA"), (ED, "Ed25519", "EdDSA")]
    for key, stated, algorithm in fitting:
        found = json_web_key(jwk(key, "k", alg=stated, use="sig", key_ops=["verify"]))
        assert found is not None
        assert (found.algorithm, found.kid) == (algorithm, "k")
