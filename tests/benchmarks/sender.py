"""A publisher's connection: requests written together, their answers read; cheap, so that servers are what is slow."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence


def post(path: str, body: bytes, kind: str = "application/json", key: str | None = None) -> bytes:
    """A POST request."""
    said = f"Authorization: Bearer {key}\r\n" if key is not None else ""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\n{said}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Refused(Exception):
    """A server did not take what was published."""


class Sender:
    """One connection, which is opened again where the server has ended it between two requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def _ended(self) -> bool:
        """Whether there is an end to read; between two requests there is nothing else."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def send(self, requests: Sequence[bytes]) -> list[bytes]:
        """Write all requests in one piece and wait for their answers; raises Refused."""
        if self._ended():
            self.close()
            self._open()
        self.write(b"".join(requests))
        return [self.read() for _ in requests]

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> bytes:
        """The body of the next answer."""
        status = self._file.readline()
        length, chunked = 0, False
        while (field := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = field.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            chunked = chunked or (name.lower() == b"transfer-encoding" and b"chunked" in value)
        body = self._chunks() if chunked else self._file.read(length)
        if not status.startswith(b"HTTP/1.1 2"):
            raise Refused(f"{status!r} {body[:500]!r}")
        return body

    def _chunks(self) -> bytes:
        body = bytearray()
        while size := int(self._file.readline(), 16):
            body += self._file.read(size)
            self._file.readline()
        self._file.readline()
        return bytes(body)

    def close(self) -> None:
        self._file.close()
        self._socket.close()
