"""Server-sent events out of chunks of bytes (WHATWG HTML, 9.2.6), as far as a gateway sends them."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.client.frames import Checkpoint, Frame, decode_frame

MAX_EVENT = 8 << 20  # bytes; a message has 64 KiB unless the gateway's settings allow more


class Events:
    """Cuts a stream into frames. Lines end at CR LF, LF or CR, and nowhere else.

    `last_id` is what an EventSource would come back with, `retry` the seconds it would wait before; None until told.
    """

    def __init__(self) -> None:
        self.last_id: str | None = None
        self.retry: float | None = None
        self._rest = b""
        self._data: list[bytes] = []
        self._id: str | None = None

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """The frames this chunk completes. Raises ValueError for what no gateway sends."""
        data = self._rest + chunk
        # A CR at the very end may be half of a CR LF.
        held = b"\r" if data.endswith(b"\r") else b""
        *lines, rest = data.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT:
            raise ValueError(f"an event has more than {MAX_EVENT} bytes")
        for line in lines:
            if line:
                self._field(line)
            else:
                yield from self._dispatch()

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"id":
            self._id = value.decode()
        elif name == b"retry" and value.isdigit():
            self.retry = int(value) / 1000

    def _dispatch(self) -> Iterator[Frame]:
        """The frame first: the cursor beside it holds its position already."""
        data, self._data = self._data, []
        cursor, self._id = self._id, None
        if cursor is not None:
            self.last_id = cursor
        frame = decode_frame(b"\n".join(data)) if data else None
        if frame is not None:
            yield frame
        if cursor:
            yield Checkpoint(cursor)
