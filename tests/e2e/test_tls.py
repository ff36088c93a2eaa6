"""TLS without a proxy: every transport, whole replays, and certificates that cannot be used."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.support.certificates import Certificate
from tests.support.command import ringcast
from tests.support.gateway import Gateway
from tests.support.keys import bearer

MESSAGES = 300
SIZE = 8000  # bytes; together more than the sockets' buffers take at once


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=[True, False], ids=["native", "asgi"])
def gateway(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Gateway]:
    settings = {"tls_certificate": certificate.file, "tls_key": certificate.key, "native": request.param}
    with Gateway(**settings) as found:
        yield found
        assert not found.complaints()


@pytest.fixture
def trust(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate.file)


async def published(gateway: Gateway, channel: str) -> list[int]:
    """The numbers of messages that are there to be replayed."""
    lines = "".join(f'{{"channel":"{channel}","data":{{"n":{n},"pad":"{"x" * SIZE}"}}}}\n' for n in range(MESSAGES))
    async with gateway.api() as http:
        answer = await http.post("/v1/publish", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert answer.status_code == 200
    return list(range(MESSAGES))


async def test_a_websocket_gets_a_replay_that_no_buffer_holds(gateway: Gateway, trust: ssl.SSLContext) -> None:
    assert gateway.url.startswith("https://")
    sent = await published(gateway, "topic:ws")
    url = f"{gateway.ws_url}/v1/ws?channels=topic:ws&since=earliest"
    async with connect(url, ssl=trust, additional_headers=bearer(), proxy=None, max_size=None) as client:
        got: list[int] = []
        async with asyncio.timeout(20):
            while len(got) < len(sent):
                frame = json.loads(await client.recv())
                if frame["type"] == "message":
                    got.append(frame["data"]["n"])
    assert got == sent


async def test_a_stream_gets_it_too(gateway: Gateway, trust: ssl.SSLContext) -> None:
    sent = await published(gateway, "topic:sse")
    got: list[int] = []
    async with (
        asyncio.timeout(20),
        httpx.AsyncClient(verify=trust, trust_env=False, headers=bearer()) as http,
        http.stream("GET", f"{gateway.url}/v1/sse?channels=topic:sse&since=earliest") as stream,
    ):
        assert stream.status_code == 200
        async for line in stream.aiter_lines():
            if line.startswith("data:") and (frame := json.loads(line[5:]))["type"] == "message":
                got.append(frame["data"]["n"])
                if len(got) == len(sent):
                    break
    assert got == sent


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"RINGCAST_TLS_CERTIFICATE": "/nowhere"}, "tls_certificate and tls_key cannot be used"),
        ({"RINGCAST_TLS_CERTIFICATE": str(Path(__file__))}, "tls_certificate and tls_key cannot be used"),
        ({"RINGCAST_TLS_KEY": "/nowhere"}, "without tls_certificate"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_told_at_start(settings: dict[str, str], said: str) -> None:
    done = ringcast("serve", "--port", "0", **settings)
    assert done.returncode == 2
    assert said in done.stderr
