"""Where the address and the key come from, and that the key goes nowhere else."""

from __future__ import annotations

import logging
import subprocess
import sys

import httpx
import pytest

from publisher import AsyncPublisher, Publisher, Unavailable
from publisher.exchange import Retry


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGCAST_URL", raising=False)
    monkeypatch.delenv("RINGCAST_API_KEY", raising=False)


def sent(url: str | None = None, key: str | None = None) -> httpx.Request:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={"results": [{"channel": "user:1", "offset": 1, "id": "x"}]})

    with Publisher(url, key, transport=httpx.MockTransport(answer)) as publisher:
        publisher.publish("user:1")
    return requests[0]


def test_the_environment_says_what_no_argument_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGCAST_URL", "http://from-env:1")
    monkeypatch.setenv("RINGCAST_API_KEY", "env-key")
    assert str(sent().url) == "http://from-env:1/v1/publish"
    assert sent().headers["authorization"] == "Bearer env-key"
    assert str(sent(url="https://given/gateway/").url) == "https://given/gateway/v1/publish"
    assert sent(key="given-key").headers["authorization"] == "Bearer given-key"


def test_without_a_key_none_is_sent() -> None:
    assert "authorization" not in sent(url="http://localhost").headers


@pytest.mark.parametrize(("url", "fault"), [
    ("", "say where the gateway is"), ("localhost:8000", "must look like"), ("ftp://x", "must look like"),
    ("http://", "must look like"), ("http://x/?a=b", "must look like"), ("http://x:port", "not a URL"),
    ("http://u:hunter2@x", "must not hold a password"),
])  # fmt: skip
@pytest.mark.parametrize("client", [Publisher, AsyncPublisher])
def test_a_bad_url_is_told_at_once(client: type[Publisher] | type[AsyncPublisher], url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as error:
        client(url)
    assert "hunter2" not in str(error.value)


def test_a_key_that_no_header_carries_is_told_at_once_and_not_shown() -> None:
    with pytest.raises(ValueError, match="header") as error:
        Publisher("http://x", "geheim\n")
    assert "geheim" not in str(error.value)


def test_the_key_is_neither_shown_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Publisher("http://127.0.0.1:9", "hush-hush", retry=Retry(deadline=0.1)) as publisher:
        assert repr(publisher) == "<Publisher http://127.0.0.1:9>"
        with pytest.raises(Unavailable) as error:
            publisher.publish("user:1")
    assert "hush" not in caplog.text + repr(error.value) + str(error.value)


def test_importing_the_sdk_imports_no_gateway() -> None:
    code = "import publisher, publisher.testing, sys; sys.exit(any(m.split('.')[0] == 'gateway' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
