"""How a node ends: a drained one exits with 0, whatever else it is sent while it does."""

from __future__ import annotations

import signal

import pytest

from tests.support.clients import WebSocketClient, connect
from tests.support.gateway import Gateway
from tests.support.keys import token


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_it_with_0(first: signal.Signals) -> None:
    with Gateway() as gateway:
        gateway.signal(first)
        assert gateway.ended() == 0, gateway.stderr


def test_signals_that_come_again_do_not_turn_the_0_into_a_death() -> None:
    with Gateway() as gateway:
        while gateway.process.poll() is None:
            gateway.signal(signal.SIGTERM)
        assert gateway.ended() == 0, gateway.stderr


async def test_a_replaced_token_that_ends_sooner_ends_the_session_on_time() -> None:
    async with (
        Gateway(heartbeat="30s", jwt_leeway=0) as gateway,
        await connect("websocket", gateway.url, token("ann", expires_in=3600)) as client,
    ):
        assert isinstance(client, WebSocketClient)
        await client.send({"type": "connect", "token": token("ann", expires_in=1)})
        assert await client.ended() == 4200
