"""A bare EventSource (WHATWG HTML, 9.2), as a browser's own is: it knows nothing of Ringcast but its URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import httpx

from gateway.client.frames import Event, Positions
from gateway.client.links import OPEN_WITHIN, answered
from gateway.client.reconnect import Ended, Refused
from gateway.client.stream import Events
from gateway.client.watch import Watch
from gateway.errors import BAD_REQUEST

RETRY = 3.0  # seconds to wait before it comes back, until it is told others


class _Connection:
    """Stands for one of its connections."""


async def follow(
    http: httpx.AsyncClient, url: str, ticket: str, partition: int, watch: Watch
) -> AsyncGenerator[Event]:
    """What an application sees that skips what it saw before. Raises Refused at any status but 200, and has ended."""
    positions, cursor, retry = Positions(), None, RETRY
    query: dict[str, str | int] = {"ticket": ticket, "p": partition}
    while True:
        link, parser = _Connection(), Events()
        headers = {"Accept": "text/event-stream"} | ({} if cursor is None else {"Last-Event-ID": cursor})
        watch.opening(link, cursor)
        end = Ended("the stream has ended")
        try:
            async with http.stream(
                "GET", url + "/v1/sse", params=query, headers=headers, timeout=httpx.Timeout(OPEN_WITHIN, read=None)
            ) as response:
                if response.status_code != 200:
                    end = answered(response.status_code, response.headers, await response.aread())
                    raise Refused(end.code or BAD_REQUEST, f"HTTP {response.status_code}: {end.reason}")
                async for chunk in response.aiter_bytes():
                    for frame in parser.feed(chunk):
                        watch.frame(link, frame)
                        event = positions.take(frame)
                        cursor = parser.last_id or cursor
                        if event is not None:
                            yield event
                    retry = retry if parser.retry is None else parser.retry
        except httpx.RequestError as error:
            end = Ended(f"the connection failed: {str(error) or type(error).__name__}")
        finally:
            watch.ended(link, end)
        await asyncio.sleep(retry)
