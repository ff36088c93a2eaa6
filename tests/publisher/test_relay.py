"""How a relay waits when one of its sides is away, and what it says of it."""

from __future__ import annotations

import asyncio
import time

import pytest

from publisher.relay import CAP, MOST, Backoff


def backoff(stop: asyncio.Event | None = None) -> Backoff:
    return Backoff("the gateway", stop or asyncio.Event(), jitter=lambda: 1.0)


def test_pauses_double_up_to_a_limit_and_begin_anew_once_something_went_through() -> None:
    waits = backoff()
    assert [waits.delay(0, False) for _ in range(4)] == [0.2, 0.4, 0.8, 1.6]
    assert [waits.delay(0, True) for _ in range(2)] == [0.2, 0.2]
    assert max(waits.delay(0, False) for _ in range(100)) == CAP
    waits.worked()
    assert waits.delay(0, False) == 0.2


def test_a_wish_for_a_pause_is_heeded_within_reason() -> None:
    assert backoff().delay(7, False) == 7.2
    assert backoff().delay(86_400, False) == MOST + 0.2


async def test_what_is_wrong_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    stop = asyncio.Event()
    stop.set()
    waits = backoff(stop)
    for detail in ("refused", "refused", "gone", "gone"):
        await waits.failed(detail)
    waits.worked()
    waits.worked()
    told = [record.getMessage() for record in caplog.records]
    assert told[:2] == ["the gateway: refused; trying again", "the gateway: gone; trying again"]
    assert [line.rpartition(",")[0] for line in told[2:]] == ["the gateway: works again"]
    assert waits.delay(0, False) == 0.2


async def test_a_relay_that_is_told_to_stop_waits_no_longer() -> None:
    stop = asyncio.Event()
    began = time.monotonic()
    waiting = asyncio.create_task(backoff(stop).failed("away", at_least=MOST))
    await asyncio.sleep(0)
    stop.set()
    await waiting
    assert time.monotonic() - began < MOST / 2
