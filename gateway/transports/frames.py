"""WebSocket frames (RFC 6455, 5) of a server without extensions, with no I/O.

What clients send is little and rare, and a server holds many of them idle: a `Reader` is made when bytes arrive and
let go of once it holds none. Strict in everything that a server can tell of what it reads.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from websockets.speedups import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FIN, _RESERVED, _OPCODE, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_KNOWN = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))
_MAX_CONTROL = 125  # bytes of a control frame (5.5)

PROTOCOL_ERROR, NOT_TEXT, TOO_BIG = 1002, 1007, 1009
NO_CODE = 1005  # what a close frame without a code means (7.1.5)

_new_decoder = codecs.getincrementaldecoder("utf-8")


class FrameError(Exception):
    """The peer broke the protocol: the connection fails (7.1.7) with `code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole frame as a server sends it: unmasked."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((_FIN | opcode, 126)) + size.to_bytes(2) + payload
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame; a reason that is too long for it is cut between two characters."""
    text = reason.encode()[: _MAX_CONTROL - 2].decode(errors="ignore").encode()
    return frame(CLOSE, code.to_bytes(2) + text)


class Reader:
    """Makes messages of bytes, which may come in any pieces."""

    __slots__ = ("_buffer", "_decoder", "_limit", "_opcode", "_parts", "_size")

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of a message at most, 1009 beyond."""
        self._limit = limit
        self._buffer = bytearray()
        self._opcode = CONTINUATION  # of the message whose fragments are being collected
        self._parts: list[bytes] = []
        self._size = 0
        self._decoder: codecs.IncrementalDecoder | None = None

    @property
    def empty(self) -> bool:
        """Whether it is between two messages, so that a new one goes on as well."""
        return not self._buffer and self._opcode == CONTINUATION

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of each whole message, and of each control frame. Raises FrameError.

        The payload of TEXT is UTF-8, and that of CLOSE empty or a code that may be sent and a reason in UTF-8.
        """
        buffer = self._buffer
        buffer += data
        while (found := self._frame()) is not None:
            final, opcode, payload = found
            if opcode >= CLOSE:
                if opcode == CLOSE:
                    check_close(payload)
                yield opcode, payload
            elif final and opcode != CONTINUATION:
                if opcode == TEXT:
                    _check_text(payload)
                yield opcode, payload
            elif (whole := self._fragment(final, opcode, payload)) is not None:
                yield whole

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """The next frame of the buffer, unmasked; None while it is not all there."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        opcode, size, at = first & _OPCODE, second & _LENGTH, 2
        self._check_head(first, second)
        if size == 126:
            at = 4
            size = int.from_bytes(buffer[2:4])
            if len(buffer) >= at and size < 126:
                raise FrameError(PROTOCOL_ERROR, "a length is not in its shortest form")
        elif size == 127:
            at = 10
            size = int.from_bytes(buffer[2:10])
            if len(buffer) >= at and (size < 1 << 16 or size >> 63):
                raise FrameError(PROTOCOL_ERROR, "a length is not in its shortest form, or above 2^63")
        if len(buffer) < at:
            return None
        if size + self._size > self._limit:
            raise FrameError(TOO_BIG, f"a message has at most {self._limit} bytes")
        end = at + 4 + size
        if len(buffer) < end:
            return None
        payload = apply_mask(bytes(buffer[at + 4 : end]), bytes(buffer[at : at + 4]))
        del buffer[:end]
        return bool(first & _FIN), opcode, payload

    def _check_head(self, first: int, second: int) -> None:
        opcode = first & _OPCODE
        if first & _RESERVED:
            raise FrameError(PROTOCOL_ERROR, "a reserved bit is set, and no extension was agreed on")
        if opcode not in _KNOWN:
            raise FrameError(PROTOCOL_ERROR, f"there is no opcode {opcode}")
        if not second & _MASKED:
            raise FrameError(PROTOCOL_ERROR, "a client masks every frame")
        if opcode >= CLOSE:
            if not first & _FIN or second & _LENGTH > _MAX_CONTROL:
                raise FrameError(PROTOCOL_ERROR, "a control frame is whole and has at most 125 bytes")
        elif (opcode == CONTINUATION) != (self._opcode != CONTINUATION):
            raise FrameError(PROTOCOL_ERROR, "a message begins within another, or goes on without a beginning")

    def _fragment(self, final: bool, opcode: int, payload: bytes) -> tuple[int, bytes] | None:
        """Take a fragment; the whole message with its last one."""
        if opcode != CONTINUATION:
            self._opcode = opcode
            self._decoder = _new_decoder() if opcode == TEXT else None
        if self._decoder is not None:  # so that what is no text is refused at its first fragment that shows it
            _check_text(payload, self._decoder, final)
        if payload:
            self._parts.append(payload)
            self._size += len(payload)
            if len(self._parts) > 1024:  # bytes are bounded, and a fragment may hold one of them
                self._parts = [b"".join(self._parts)]
        if not final:
            return None
        whole = self._opcode, b"".join(self._parts)
        self._opcode, self._parts, self._size, self._decoder = CONTINUATION, [], 0, None
        return whole


def check_close(payload: bytes) -> None:
    """Raise FrameError for what no close frame holds (5.5.1, 7.4)."""
    if not payload:
        return
    code = int.from_bytes(payload[:2])
    _check_text(payload[2:])
    if len(payload) == 1 or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise FrameError(PROTOCOL_ERROR, "a close frame holds a code that is never sent")


def _check_text(payload: bytes, decoder: codecs.IncrementalDecoder | None = None, final: bool = True) -> None:
    try:
        if decoder is None:
            payload.decode()
        else:
            decoder.decode(payload, final)
    except UnicodeDecodeError:
        raise FrameError(NOT_TEXT, "what is sent as text is not UTF-8") from None
