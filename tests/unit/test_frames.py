"""The frame reader against the RFC, and against the `websockets` library, which reads the same bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, PayloadTooBig, ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import SERVER, Protocol
from websockets.speedups import apply_mask

from gateway.transports.frames import BINARY, CLOSE, PING, PONG, TEXT, FrameError, Reader, close_frame, frame

LIMIT = 70_000
SMALL = 700  # of the random messages, so that a failing one can be read
MASK = b"\x01\x02\x03\x04"


def masked(first: int, payload: bytes, length: int | None = None) -> bytes:
    """A client's frame; `length` as it is written in one byte, where that is not the shortest form."""
    size = len(payload)
    if length is None:
        length = size if size < 126 else 126 if size < 1 << 16 else 127
    extended = size.to_bytes({126: 2, 127: 8}.get(length, 0)) if length > 125 else b""
    return bytes((first, 0x80 | length)) + extended + MASK + apply_mask(payload, MASK)


def read(data: bytes, limit: int = LIMIT) -> list[tuple[int, bytes]]:
    return list(Reader(limit).feed(data))


def failure(data: bytes, limit: int = LIMIT) -> int:
    with pytest.raises(FrameError) as caught:
        read(data, limit)
    assert caught.value.reason
    return caught.value.code


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_a_message_of_any_size_is_read_and_written(size: int) -> None:
    payload = b"x" * size
    assert read(masked(0x81, payload)) == [(TEXT, payload)]
    written = frame(TEXT, payload)
    assert written.endswith(payload)
    assert written == Frame(Opcode.TEXT, payload).serialize(mask=False)


def test_fragments_make_a_message_with_control_frames_between_them() -> None:
    pieces = [masked(0x01, b"a"), masked(0x89, b"!"), masked(0x00, b"b"), masked(0x00, b""), masked(0x80, b"c")]
    assert read(b"".join(pieces)) == [(PING, b"!"), (TEXT, b"abc")]


def test_a_character_may_be_torn_between_fragments() -> None:
    euro = "€".encode()
    assert read(masked(0x01, euro[:1]) + masked(0x80, euro[1:])) == [(TEXT, euro)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(0xC1, b"a"), 1002),  # a reserved bit
        (masked(0x83, b"a"), 1002),  # an unknown opcode
        (masked(0x8B, b"a"), 1002),
        (bytes((0x81, 1)) + b"a", 1002),  # not masked
        (masked(0x09, b"a"), 1002),  # a control frame in fragments
        (masked(0x89, b"a" * 126), 1002),  # and one that is too long
        (masked(0x80, b"a"), 1002),  # goes on without a beginning
        (masked(0x01, b"a") + masked(0x81, b"b"), 1002),  # a message within a message
        (masked(0x81, b"a", 126), 1002),  # lengths in longer forms than they need
        (masked(0x81, b"a" * 200, 127), 1002),
        (bytes((0x81, 0xFF)) + b"\xff" * 8 + MASK, 1002),  # 2^64 - 1
        (masked(0x88, b"\x03"), 1002),  # half a close code
        (masked(0x88, (1005).to_bytes(2)), 1002),  # codes that are never sent
        (masked(0x88, (999).to_bytes(2)), 1002),
        (masked(0x88, (5000).to_bytes(2)), 1002),
        (masked(0x88, (1000).to_bytes(2) + b"\xff"), 1007),
        (masked(0x81, b"\xff"), 1007),
        (masked(0x01, b"\xff"), 1007),  # told at the first fragment
        (masked(0x01, b"\xe2\x82") + masked(0x80, b""), 1007),  # half a character at the end
        (masked(0x81, b"x" * (LIMIT + 1)), 1009),
        (masked(0x81, b"x" * (LIMIT + 1))[:10], 1009),  # before it is there
        (masked(0x01, b"x" * LIMIT) + masked(0x80, b"x"), 1009),
    ],
)
def test_what_breaks_the_protocol_fails_with_the_code_for_it(data: bytes, code: int) -> None:
    assert failure(data) == code


def test_a_reader_is_empty_between_messages_only() -> None:
    reader = Reader(LIMIT)
    whole = masked(0x81, b"hello")
    for size in range(1, len(whole)):
        assert list(reader.feed(whole[size - 1 : size])) == []
        assert not reader.empty
    assert list(reader.feed(whole[-1:])) == [(TEXT, b"hello")]
    assert reader.empty
    assert list(reader.feed(masked(0x01, b"a"))) == []
    assert not reader.empty


def test_ten_thousand_fragments_of_a_byte_are_held_in_bounded_pieces() -> None:
    reader = Reader(LIMIT)
    assert list(reader.feed(masked(0x02, b"x") + masked(0x00, b"x") * 9_998)) == []
    assert len(reader._parts) <= 1025
    assert list(reader.feed(masked(0x80, b"x"))) == [(BINARY, b"x" * 10_000)]


def test_a_close_frame_cuts_a_long_reason_between_characters() -> None:
    written = close_frame(4001, "é" * 200)
    assert written[:2] == bytes((0x88, 2 + 122))
    assert written[4:].decode() == "é" * 61
    assert close_frame(1000) == bytes((0x88, 2, 0x03, 0xE8))


def theirs(data: bytes) -> tuple[list[tuple[int, bytes]], int | None]:
    """What the library makes of the bytes: its frames joined to messages, and the code it fails with."""
    protocol = Protocol(SERVER, max_size=SMALL)
    protocol.receive_data(data)
    found: list[tuple[int, bytes]] = []
    opcode, parts = 0, b""
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
            found.append((int(event.opcode), bytes(event.data)))
            continue
        opcode = opcode if event.opcode is Opcode.CONT else int(event.opcode)
        parts += bytes(event.data)
        if event.fin:
            found.append((opcode, parts))
            parts = b""
    error = protocol.parser_exc
    if error is None or isinstance(error, EOFError):
        return found, None
    if isinstance(error, ConnectionClosed):
        return found, None
    if isinstance(error, PayloadTooBig):
        return found, int(CloseCode.MESSAGE_TOO_BIG)
    if isinstance(error, UnicodeDecodeError):
        return found, int(CloseCode.INVALID_DATA)
    assert isinstance(error, ProtocolError), error
    return found, int(CloseCode.PROTOCOL_ERROR)


def ours(data: bytes, cuts: list[int]) -> tuple[list[tuple[int, bytes]], int | None]:
    reader, found, begin = Reader(SMALL), [], 0
    try:
        for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
            for event in reader.feed(data[begin:end]):
                found.append(event)
                if event[0] == CLOSE:
                    return found, None
            begin = end
    except FrameError as error:
        return found, error.code
    return found, None


FRAMES = st.builds(
    masked,
    st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A, 0x88, 0x83, 0xC1, 0x09]),
    st.one_of(
        st.binary(max_size=130), st.text(max_size=40).map(str.encode), st.just(b"\x03\xe8"),
        st.integers(0, SMALL + 9).map(lambda size: b"y" * size),
    ),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 10**6), max_size=6))
def test_it_reads_what_the_websockets_library_reads(frames: list[bytes], cuts: list[int]) -> None:
    """But for two cases: text that is no text it leaves to whoever reads the message; and a close between the fragments
    of a message, which the RFC allows as it does any control frame, it refuses."""
    data = b"".join(frames)
    found, code = ours(data, cuts)
    expected, failed = theirs(data)
    if code == 1007:
        assert found == expected[: len(found)]
        return
    if found and found[-1][0] == CLOSE and failed == 1002:
        found, code = found[:-1], 1002
    assert (found, code is None) == (expected, failed is None)  # a frame may be wrong in two ways: any code will do


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_any_bytes_end_in_messages_or_a_failure(data: bytes, cuts: list[int]) -> None:
    assert ours(data, cuts) == ours(data, [])
    assert {opcode for opcode, _ in ours(data, [])[0]} <= {TEXT, BINARY, CLOSE, PING, PONG}
