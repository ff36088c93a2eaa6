"""A cancellation that a client library swallowed is a cancellation all the same."""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """Call this after what a library did: whoever was cancelled must not go on, or nothing ever ends.

    redis-py, cancelled while it reads over TLS, raises what closing the connection raised instead; cancelled while a
    pipeline connects anew, it may try once more, and succeed.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
