"""Publishing many messages from a test, in order and fast."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tests.support.gateway import Gateway

LINES = 1000  # to a request: its answers fit into the socket's buffers while the request is still being written


async def publish(gateway: Gateway, channel: str, values: Iterable[Any], **fields: Any) -> list[int]:
    """Publish each value as the data of one message; returns their offsets."""
    lines = [json.dumps({"channel": channel, "event": "test", "data": value, **fields}) for value in values]
    return await publish_lines(gateway, lines)


async def publish_lines(gateway: Gateway, lines: Sequence[str]) -> list[int]:
    """Publish each line, one JSON object as POST /v1/publish takes it; returns the offset of each one's target."""
    offsets: list[int] = []
    async with gateway.api() as http:
        http.headers["Content-Type"] = "application/x-ndjson"
        for first in range(0, len(lines), LINES):
            batch = lines[first : first + LINES]
            response = await http.post("/v1/publish", content="\n".join(batch))
            response.raise_for_status()
            answers = [json.loads(answer) for answer in response.text.splitlines()]
            assert len(answers) == len(batch)
            offsets += [answer["results"][0]["offset"] for answer in answers]
    return offsets
