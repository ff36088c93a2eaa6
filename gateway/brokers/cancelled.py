"""A cancellation that a client library answered with an error of its own is a cancellation all the same."""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """Call this where an error of a library is handled: whoever was cancelled must not go on, or nothing ever ends.

    redis-py, cancelled while it reads over TLS, raises what closing the connection raised instead.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
