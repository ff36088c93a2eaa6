from __future__ import annotations

import asyncio

from gateway.brokers.cancelled import raise_if_cancelled


async def test_a_cancellation_that_a_library_swallowed_ends_the_task_all_the_same() -> None:
    async def library() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("closing failed") from None

    async def run() -> None:
        while True:
            try:
                await library()
            except ConnectionError:
                raise_if_cancelled()

    running = asyncio.create_task(run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running], timeout=5)
    assert running.cancelled()


async def test_a_deadline_that_is_over_cancels_nobody() -> None:
    try:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    except TimeoutError:
        raise_if_cancelled()
