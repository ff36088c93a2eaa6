"""What every test may ask for. A gateway is shared by the tests of one module, because starting one takes a second."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.gateway import Gateway

# A shell that runs something in the background lets it ignore SIGINT, and all that it starts: tests that interrupt
# their processes would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Whether gateways take connections below ASGI, or through it.
PATHS = [pytest.param(True, id="native"), pytest.param(False, id="asgi", marks=pytest.mark.chaos)]


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    """What the module's gateway is started with; a module that wants other settings defines this fixture anew."""
    return {}


@contextmanager
def running(**settings: Any) -> Iterator[Gateway]:
    """A gateway that must stop in good order at the end, and have complained of nothing."""
    with Gateway(**settings) as gateway:
        yield gateway
        code = gateway.stop()
        assert code == 0, gateway.stderr
        assert not gateway.complaints(), gateway.stderr


@pytest.fixture(scope="module")
def gateway(gateway_settings: dict[str, Any]) -> Iterator[Gateway]:
    """A running gateway, shared by the module."""
    with running(**gateway_settings) as gateway:
        yield gateway
