"""The subscriber's decisions, without a gateway: frames, positions, events of a stream, when to come back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import Message, Refused, Reset, Subscriber, TokenExpired, Unsubscribed
from gateway.client.frames import (
    MEANWHILE,
    Checkpoint,
    Frame,
    Goodbye,
    Ping,
    Positions,
    Subscribed,
    Welcome,
    decode_frame,
)
from gateway.client.links import answered
from gateway.client.reconnect import Ended, Reconnect
from gateway.client.stream import MAX_EVENT, Events
from gateway.errors import KINDS
from gateway.message import Control, decode_cursor, encode_cursor
from gateway.message import Message as Sent
from tests.support.sse import Parser


def message(offset: int, channel: str = "topic:a", data: bytes = b'{"n": 1.10}') -> Message:
    frame = decode_frame(Sent(channel, offset, f"id{offset}", "test", data, 1_763_640_000_123).json)
    assert isinstance(frame, Message)
    return frame


def control(kind: str, channel: str | None = None, **body: Any) -> Frame:
    frame = decode_frame(Control(kind, channel, **body).json)
    assert frame is not None
    return frame


# Frames


def test_a_message_keeps_its_data_to_the_letter() -> None:
    sent = Sent("user:42", 7, "x", "order", '{"n": 1.10, "big": 18446744073709551617, "s": "\u2028"}'.encode(), 1000,
                key="k", version=(1, 2), deleted=True)  # fmt: skip
    frame = decode_frame(sent.json)
    assert isinstance(frame, Message)
    assert bytes(frame.raw) == sent.data
    assert frame.data == {"n": 1.1, "big": 18446744073709551617, "s": "\u2028"}
    assert (frame.key, frame.version, frame.deleted) == ("k", (1, 2), True)
    assert frame.time.isoformat() == "1970-01-01T00:00:01+00:00"
    assert repr(frame) == "<Message user:42 7 order>"


def test_a_frame_of_a_type_to_come_is_passed_over() -> None:
    assert decode_frame(b'{"type":"weather","sunny":true}') is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"type":"message"}', b'{"type":"reset","channel":7}', b"\xff"])
def test_what_is_no_frame_is_told(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_frame(data)


# Positions


def test_no_message_is_taken_twice() -> None:
    positions = Positions(encode_cursor({"topic:a": 5}))
    taken = [positions.take(message(offset)) for offset in (5, 6, 6, 4, 9, 8)]
    assert [found.offset for found in taken if isinstance(found, Message)] == [6, 9]
    assert decode_cursor(positions.cursor, 1000) == {"topic:a": 9}


def test_a_reset_begins_anew_at_its_offset() -> None:
    positions = Positions(encode_cursor({"topic:a": 50}))
    reset = positions.take(control("reset", "topic:a", reason="unknown", offset=20))
    assert reset == Reset("topic:a", "unknown", 20)
    assert isinstance(positions.take(message(21)), Message)


def test_a_reset_of_a_connection_opened_beside_another_shows_only_what_that_one_did_not() -> None:
    positions = Positions(encode_cursor({"topic:a": 50}))
    reset = control("reset", "topic:a", reason="lost", offset=50)
    taken = [positions.take(frame, beside=True) for frame in (reset, message(60), message(62))]
    again = [positions.take(message(offset)) for offset in (60, 61, 62, 63)] if positions.take(reset) else []
    assert [found.offset for found in (*taken, *again) if isinstance(found, Message)] == [60, 62, 61, 63]
    assert positions.take(reset)  # a later one, which no connection beside another has brought
    assert [bool(positions.take(message(offset))) for offset in (60, 61, 62, 63)] == [True] * 4


def test_what_is_remembered_for_a_connection_beside_another_is_bounded() -> None:
    positions = Positions(encode_cursor({"topic:a": 0, "topic:b": 0}))
    for offset in range(1, MEANWHILE + 101):
        assert positions.take(message(offset), beside=True)
    positions.take(control("reset", "topic:a", reason="lost", offset=0))
    again = [offset for offset in range(1, MEANWHILE + 101) if positions.take(message(offset))]
    assert again == list(range(MEANWHILE + 1, MEANWHILE + 101))
    assert positions.take(message(1, "topic:b"), beside=True)
    positions.take(control("unsubscribed", "topic:b"))
    assert positions.take(message(1, "topic:b")), "it was left, and entered again from its beginning"


def test_what_is_told_of_a_subscription_replaces_the_position() -> None:
    positions = Positions(encode_cursor({"topic:a": 50, "topic:b": 50}))
    welcome = control("welcome", session="s", heartbeat_ms=200, channels=[{"channel": "topic:a", "offset": 40}])
    assert isinstance(welcome, Welcome)
    assert positions.take(welcome) is None
    assert positions.take(Subscribed("topic:b", 30)) is None
    assert decode_cursor(positions.cursor, 1000) == {"topic:a": 40, "topic:b": 30}


@pytest.mark.parametrize("kind", [Checkpoint, Ping, lambda cursor: Goodbye(4100, cursor=cursor)])
def test_a_cursor_moves_quiet_channels_and_none_back(kind: Any) -> None:
    positions = Positions(encode_cursor({"topic:a": 5, "topic:b": 5}))
    assert positions.take(kind(encode_cursor({"topic:a": 9, "topic:b": 4, "topic:c": 1}))) is None
    assert decode_cursor(positions.cursor, 1000) == {"topic:a": 9, "topic:b": 5, "topic:c": 1}


def test_a_channel_that_ended_has_no_position() -> None:
    positions = Positions(encode_cursor({"topic:a": 5}))
    assert positions.take(control("unsubscribed", "topic:a")) == Unsubscribed("topic:a")
    assert not positions


# Events of a stream


def test_a_stream_cut_anywhere_gives_the_same_frames_as_the_standard() -> None:
    sent = [
        Sent("topic:a", 1, "x", "test", '"\u2028\u0085 é 😀"'.encode(), 1000).sse,
        b"retry: 250\n\n", b": comment\n\n",
        Control("ping").sse + b"id: Y3Vyc29y\n\n",
        b'event: ringcast.ping\r\ndata: {"type":\r\ndata:"ping"}\r\n\r\n',
        b'data: {"type":"ping"}\rid: eA\r\r',
        b"id: eQ\n\n",
    ]  # fmt: skip
    whole = b"".join(sent)
    expected: list[Frame] = []
    last = ""
    for event in Parser().feed(whole):
        if event.data is not None:
            frame = decode_frame(event.data.encode())
            assert frame is not None
            expected.append(frame)
        if event.last_id != last:
            expected.append(Checkpoint(event.last_id))
            last = event.last_id
    assert len(expected) == 7

    @given(st.lists(st.integers(0, len(whole)), max_size=8).map(sorted))
    def cut(at: list[int]) -> None:
        events = Events()
        found = [f for a, b in zip([0, *at], [*at, len(whole)], strict=True) for f in events.feed(whole[a:b])]
        assert found == expected

    cut()


def test_an_event_without_end_is_not_kept() -> None:
    def endless() -> None:
        events = Events()
        for _ in range(2 * MAX_EVENT >> 20):
            list(events.feed(b"data: " + b"x" * (1 << 20) + b"\n"))

    with pytest.raises(ValueError, match="more than"):
        endless()


# Coming back


class Line:
    """A Reconnect with a clock and dice of the test's own."""

    def __init__(self, rungs: int = 3, refreshable: bool = True, jitter: float = 1.0) -> None:
        self.now = 1000.0
        self.reconnect = Reconnect(rungs, refreshable=refreshable, clock=lambda: self.now, jitter=lambda: jitter)

    def lasted(self, seconds: float, end: Ended) -> float:
        self.reconnect.opened()
        self.now += seconds
        return self.reconnect.ended(end)

    def failed(self, end: Ended) -> float:
        return self.reconnect.ended(end)


LOST = Ended("lost")


def test_waits_double_to_thirty_seconds_with_full_jitter() -> None:
    for jitter, expected in ((1.0, [1, 2, 4, 8, 16, 30, 30]), (0.5, [0.5, 1, 2, 4, 8, 15, 15]), (0.0, [0] * 7)):
        line = Line(jitter=jitter)
        assert [line.failed(LOST) for _ in expected] == pytest.approx(expected)


def test_a_stable_connection_begins_the_waits_anew_and_a_short_one_does_not() -> None:
    line = Line()
    assert [line.failed(LOST), line.lasted(59, LOST), line.lasted(60, LOST), line.failed(LOST)] == [1, 2, 1, 2]


def test_what_is_asked_for_is_the_least_that_is_waited() -> None:
    assert Line(jitter=0).failed(Ended("full", code=4104, wait=7)) == 7


@pytest.mark.parametrize("code", [4001, 4003, 4008, 4009, 4099])
def test_a_refusal_is_final(code: int) -> None:
    with pytest.raises(Refused) as refusal:
        Line().failed(Ended("no", code=code))
    assert (refusal.value.code, refusal.value.reason) == (code, "no")


@pytest.mark.parametrize("code", [4100, 4101, 4102, 4103, 4104])
def test_the_node_s_own_troubles_are_waited_out_on_the_same_transport(code: int) -> None:
    line = Line()
    assert line.failed(Ended("later", code=code)) == 1
    assert line.lasted(5, Ended("later", code=code)) == 2
    assert line.reconnect.rung == 0


def test_an_expired_token_is_renewed_at_once_but_not_in_a_loop() -> None:
    line = Line()
    expired = Ended("expired", code=4200)
    assert [line.lasted(10, expired), line.failed(expired), line.failed(expired)] == [0, 1, 2]
    assert [line.lasted(0.1, expired), line.lasted(10, expired)] == [4, 0]


def test_an_expired_token_that_nobody_renews_is_final() -> None:
    with pytest.raises(TokenExpired):
        Line(refreshable=False).lasted(10, Ended("expired", code=4200))


def test_a_planned_end_is_followed_at_once_but_not_in_a_loop() -> None:
    line = Line()
    assert line.lasted(5, Ended("goodbye", planned=True)) == 0
    assert line.lasted(0.2, Ended("goodbye", planned=True)) == 1
    assert line.failed(Ended("goodbye", planned=True)) == 2


def test_only_a_blocked_transport_gives_way_to_the_next() -> None:
    line = Line()
    blocked = Ended("403", blocked=True, status=502)
    assert (line.failed(blocked), line.reconnect.rung) == (0, 1)
    assert (line.failed(blocked), line.reconnect.rung) == (0, 2)
    assert (line.failed(blocked), line.reconnect.rung) == (1, 0)
    assert line.lasted(5, blocked) == 2, "one that worked is not blocked"
    assert line.reconnect.rung == 0


def test_what_got_through_is_kept_for_a_while_then_the_best_is_tried_again() -> None:
    line = Line()
    line.failed(Ended("403", blocked=True))
    line.lasted(10, LOST)
    assert line.reconnect.rung == 1
    line.lasted(290, LOST)
    assert line.reconnect.rung == 0


def test_a_gateway_that_is_not_reached_does_not_pin_a_lower_transport() -> None:
    line = Line()
    line.failed(Ended("cut in the handshake", blocked=True))
    assert line.failed(Ended("connection refused")) == 1
    assert line.reconnect.rung == 0


@pytest.mark.parametrize(("status", "code"), [(401, 4001), (403, 4003), (404, 4008)])
def test_where_nothing_is_a_gateway_it_ends(status: int, code: int) -> None:
    with pytest.raises(Refused, match="URL") as refusal:
        Line(rungs=1).failed(Ended(f"HTTP {status}", blocked=True, status=status))
    assert refusal.value.code == code


@given(st.lists(st.tuples(st.floats(0, 200), st.booleans(), st.sampled_from([None, 4100, 4103, 4200])), max_size=40))
def test_attempts_never_become_a_storm(ends: list[tuple[float, bool, int | None]]) -> None:
    """Whatever happens, at most as many attempts follow one another without a wait as there are transports, and two."""
    line = Line()
    hurried = 0
    for lasted, blocked, code in ends:
        end = Ended("x", code=code, blocked=blocked and code is None, planned=blocked)
        delay = line.lasted(lasted, end) if lasted > 100 else line.failed(end)
        hurried = hurried + 1 if delay == 0 and lasted <= 100 else 0
        assert hurried <= 3
        assert 0 <= delay <= 30


# What an HTTP answer means


@pytest.mark.parametrize("code", sorted(KINDS))
def test_a_problem_of_the_gateway_is_its_word(code: str) -> None:
    body = json.dumps({"status": KINDS[code].status, "code": code, "detail": "because"}).encode()
    end = answered(KINDS[code].status, {"content-type": "application/problem+json", "retry-after": "3"}, body)
    assert (end.code, end.reason, end.wait, end.blocked) == (KINDS[code].close, "because", 3.0, False)


@pytest.mark.parametrize(("status", "code"), [
    (401, 4001), (403, 4003), (413, 4009), (418, 4008), (429, 4103), (599, 4101),
])  # fmt: skip
def test_a_problem_to_come_is_understood_by_its_status(status: int, code: int) -> None:
    assert answered(status, {"content-type": "application/problem+json"}, b'{"code":"new"}').code == code


@pytest.mark.parametrize("body", [b"<html>Forbidden</html>", b""])
@pytest.mark.parametrize("kind", ["text/html", "application/problem+json"])
def test_any_other_answer_comes_from_something_between(body: bytes, kind: str) -> None:
    end = answered(403, {"content-type": kind}, body)
    assert (end.blocked, end.code, end.status) == (True, None, 403)


# Arguments


@pytest.mark.parametrize(("arguments", "fault"), [
    ({"url": "localhost:8000"}, "must look"), ({"url": "ws://x"}, "must look"), ({"url": "http://x?a=b"}, "must look"),
    ({"url": "http://u:hunter2@x"}, "must not hold"), ({"channels": ["news"]}, "namespace"),
    ({"cursor": "?"}, "cursor"), ({"transport": "carrier-pigeon"}, "use auto, ws, sse or poll"),
])  # fmt: skip
async def test_arguments_that_cannot_be_meant_are_refused_at_once(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as error:
        Subscriber(**{"url": "http://localhost", **arguments})
    assert "hunter2" not in str(error.value)


async def test_a_subscriber_shows_no_token() -> None:
    async with Subscriber("http://localhost:1", "geheim") as subscriber:
        assert repr(subscriber) == "<Subscriber http://localhost:1 not connected>"
