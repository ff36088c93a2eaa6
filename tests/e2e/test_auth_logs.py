"""What a gateway writes while credentials of every kind are thrown at it."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from tests.support.forge import ISSUER, RSA, SECRET, signed
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY
from tests.support.knock import DOORS, ask, knock, present, ticket


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_secret_is_ever_logged(log_format: str) -> None:
    """Every way in, good and bad, at the most talkative level; also what no HTTP parser takes."""
    secrets: list[str] = [API_KEY, SECRET]
    settings: dict[str, Any] = {
        "jwt_hmac_key": SECRET, "jwt_issuer": ISSUER, "jwt_cookie": "session", "token_in_query": True,
        "log_level": "debug", "jwks_url": "http://127.0.0.1:9/jwks.json", "log_format": log_format, "access_log": True,
    }  # fmt: skip
    with Gateway(**settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
            tokens = [signed(), signed(exp=1), signed(sub="4*"), signed("x" * 40), signed(RSA, "RS256")]
            for token in (*tokens, API_KEY):
                secrets.append(token)
                for door in DOORS:
                    await present(gateway, http, door, token)
                for path in ("publish", "poll", "sse"):
                    await ask(http, path, token=token)
                    await ask(http, path, {"Cookie": f"session={token}", "Origin": gateway.url})
                    await ask(http, path, {"Cookie": f"session={token}", "Origin": "https://evil.example"})
                await knock(gateway, query=f"token={token}")
                await knock(gateway, first={"type": "connect", "token": token, "surplus": token}, query="")
                await knock(gateway, first={"type": token}, query="")
            for wanted in ({"use": "connect"}, {"use": "stream", "channels": ["topic:a"]}):
                secrets.append(await ticket(http, **wanted))
                for _ in range(2):
                    await knock(gateway, query=f"ticket={secrets[-1]}")
                    await ask(http, "poll", ticket=secrets[-1])
                    await ask(http, "poll", {"Authorization": f"Bearer {secrets[-1]}"})
                await http.get(f"/{secrets[-1]}")
                await http.get(f"/v1/jobs/{secrets[-1]}", params={"user": secrets[-1]})
            upgrade = "HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            bearer = f"Authorization: Bearer {tokens[0]}\r\nSec-WebSocket-Protocol: bearer.{tokens[0]}\r\n\r\n"
            for broken in (
                f"GET /v1/poll?token={tokens[0]} HTTP/9.9\r\n\r\n", bearer,
                f"GET /v1/ws {upgrade}Sec-WebSocket-Version: 1\r\n{bearer}",
                f"GET /v1/ws?ticket={secrets[-1]} {upgrade}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {bearer}",
            ):  # fmt: skip
                with socket.create_connection(("127.0.0.1", gateway.port), 5) as raw:
                    raw.sendall(broken.encode())
                    raw.shutdown(socket.SHUT_WR)
                    while raw.recv(65536):
                        pass
        gateway.process.terminate()
        stdout, _ = gateway.process.communicate(timeout=15)
        logged = stdout + gateway.ready_line + gateway.stderr
        assert "login from 127.0.0.1 failed" in logged  # it was talkative
        for said in ("a connection ended", "a connection was refused", "a request was answered"):
            assert said in logged
        if log_format == "json":
            assert all(json.loads(line) for line in gateway.stderr.splitlines())
        for secret in secrets:
            assert secret not in logged
            assert secret.rsplit(".", 1)[-1] not in logged  # nor its signature
        assert not gateway.complaints()
