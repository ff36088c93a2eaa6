"""A verb on its way: what is tried again, under one id, and what is not."""

from __future__ import annotations

import msgspec
import pytest

from publisher import Receipt, Refused, Retry, Unavailable
from publisher.exchange import Request
from publisher.verbs import Call, disconnect, subscription

RECEIPT = msgspec.json.encode(Receipt("ringcast:user.u", 7, "x"))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def call(clock: Clock, deadline: float = 10.0) -> Call[Receipt]:
    return Call("POST", "/v1/x", Receipt, Retry(deadline=deadline), {"user": "u"}, clock=clock, jitter=lambda: 0.5)


def sent(call: Call[Receipt]) -> Request:
    request = call.next()
    assert request is not None
    return request


def test_what_may_pass_is_tried_again_under_the_same_id_when_it_was_asked_to() -> None:
    one = call(Clock())
    first = sent(one)
    one.answered(503, {"retry-after": "2"}, b"busy")
    second = sent(one)
    assert (first.delay, second.delay) == (0.0, 2.1)
    one.cut(ConnectionError("reset"))
    third = sent(one)
    assert third.delay == pytest.approx(0.2)
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"] == third.headers["Idempotency-Key"]
    assert first.body == third.body == b'{"user":"u"}'
    one.answered(200, {}, RECEIPT)
    assert one.next() is None
    assert one.result() == Receipt("ringcast:user.u", 7, "x")


def test_a_refusal_ends_it() -> None:
    one = call(Clock())
    sent(one)
    one.answered(403, {}, b'{"code": "forbidden", "status": 403, "detail": "no"}')
    assert one.next() is None
    with pytest.raises(Refused, match="no") as caught:
        one.result()
    assert (caught.value.code, caught.value.status) == ("forbidden", 403)


def test_an_answer_of_something_else_is_a_refusal() -> None:
    one = call(Clock())
    sent(one)
    one.answered(200, {}, b"<html>")
    with pytest.raises(Refused, match="Ringcast"):
        one.result()


def test_it_ends_at_its_deadline() -> None:
    clock = Clock()
    one = call(clock, deadline=5.0)
    assert sent(one).timeout == 5.0
    clock.now += 4
    one.answered(503, {"retry-after": "3"}, b"")
    assert one.next() is None
    with pytest.raises(Unavailable) as caught:
        one.result()
    assert (caught.value.attempts, caught.value.status, caught.value.retry_after) == (1, 503, 3.0)


def test_only_what_is_given_is_sent() -> None:
    request = disconnect(Retry(), "u", 5, None, None, "my-id").next()
    assert request is not None
    assert msgspec.json.decode(request.body) == {"user": "u", "revoke_before": 5}
    assert request.headers["Idempotency-Key"] == "my-id"
    request = subscription(Retry(), "subscribe", "u", ("room:1",), None).next()
    assert request is not None
    assert msgspec.json.decode(request.body) == {"user": "u", "channels": ["room:1"]}
