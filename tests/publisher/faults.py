"""An HTTP server that does as it is told: a fault injector for what stands between a client and its gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.split(b"\n")]

    @property
    def ids(self) -> list[str]:
        return [line["id"] for line in self.lines]


@dataclass
class Reply:
    """One answer; with `cut` only so many bytes of its body leave before the connection is reset."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: bool = False  # say nothing until the client goes


def receipts(request: Request, only: int | None = None) -> Reply:
    """What a gateway answers that stores everything; the body of the first `only` lines where given."""
    answers = []
    for n, line in enumerate(request.lines, 1):
        targets = line.get("channels") or [line["channel"]]
        results = [{"channel": c, "offset": 1000 + n, "id": line["id"], "duplicate": False} for c in targets]
        answers.append({"line": n, "results": results} if len(request.lines) > 1 else {"results": results})
    body = b"".join(json.dumps(answer).encode() + b"\n" for answer in answers)
    if only is None:
        return Reply(body=body)
    return Reply(body=body, cut=len(b"".join(line + b"\n" for line in body.split(b"\n")[:only])))


def problem(status: int, code: str, **headers: str) -> Reply:
    body = json.dumps({"type": "about:blank", "title": "t", "status": status, "code": code, "detail": f"a {code}"})
    return Reply(status, body.encode(), {"Content-Type": "application/problem+json", **headers})


CUT = Reply(cut=-1)  # the connection is reset before a byte of an answer
Script = list[Reply | Callable[[Request], Reply]]


class FaultyServer:
    """Answers its requests by `script`, one after another, and keeps them; afterwards as a healthy gateway does."""

    def __init__(self, url: str, script: Script) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.asked = asyncio.Event()  # a request has come
        self.writers: set[asyncio.StreamWriter] = set()
        self._script = script

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                self.asked.set()
                step = self._script.pop(0) if self._script else receipts
                reply = step(request) if callable(step) else step
                if not await _answer(reply, reader, writer):
                    return
        finally:
            self.writers.discard(writer)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, _ = first.split(" ")
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def _answer(reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    if reply.stall:
        await reader.read()
        return False
    if reply.cut != -1:
        headers = {"Content-Length": str(len(reply.body))} | reply.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {reply.status} Scripted\r\n{head}\r\n".encode() + reply.body[: reply.cut])
        await writer.drain()
    return reply.cut is None


@asynccontextmanager
async def faulty(*script: Reply | Callable[[Request], Reply]) -> AsyncIterator[FaultyServer]:
    server = FaultyServer("", list(script))
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        try:
            yield server
        finally:
            for writer in server.writers:
                writer.close()  # from 3.12 on a server's end waits for its connections
