"""`gateway.grants`: a ticket never grants more than whoever asks for it holds."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gateway.errors import Problem
from gateway.grants import ticket
from gateway.identity import Identity, user_identity
from gateway.message import partition_of
from gateway.settings import Settings
from gateway.tickets import Tickets

SETTINGS = Settings(max_channels=3)
TICKETS = Tickets(SETTINGS)
SERVER = Identity("key:1", read=("*",), server=True)


def ann(expires: float | None = None) -> Identity:
    return user_identity("ann", ["topic:*", "room:a"], ["room:*"], expires)


def ask(holder: Identity, **body: Any) -> dict[str, Any]:
    return ticket(json.dumps(body).encode(), holder, TICKETS, SETTINGS)


async def granted(holder: Identity, **body: Any) -> Identity:
    async def spend(jti: str, left: float) -> bool:
        return True

    return await TICKETS.redeem(ask(holder, **body)["ticket"], spend)


def refused(holder: Identity, **body: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        ask(holder, **body)
    return caught.value


async def test_a_server_makes_tickets_for_any_user() -> None:
    identity = await granted(SERVER, use="connect", user="bob", channels=["topic:*"], publish=["room:1"], ttl="1h")
    assert (identity.principal, identity.subject, identity.server) == ("user:bob", "bob", False)
    assert identity.may_read("user:bob")
    assert identity.may_read("topic:x")
    assert not identity.may_read("room:1")
    assert identity.may_publish("room:1")
    assert not identity.may_publish("room:2")
    assert identity.expires is not None
    assert abs(identity.expires - time.time() - 3600) < 5


async def test_a_server_makes_stream_tickets_for_the_channels_named() -> None:
    identity = await granted(SERVER, use="stream", channels=["topic:x"])
    assert identity.may_read("topic:x")
    assert not identity.may_read("topic:y")
    assert not identity.publish
    assert not identity.server
    own = await granted(SERVER, use="stream", user="bob")
    assert own.may_read("user:bob")
    assert own.may_read("jobs:bob")
    assert not own.may_read("topic:x")


async def test_a_user_gets_its_own_rights_or_fewer() -> None:
    everything = await granted(ann(), use="connect")
    assert everything.may_read("topic:x")
    assert everything.may_publish("room:1")
    fewer = await granted(ann(), use="connect", channels=["topic:a*"], publish=[])
    assert fewer.may_read("topic:abc")
    assert not fewer.may_read("topic:b")
    assert not fewer.may_read("room:a")
    assert not fewer.may_publish("room:1")
    assert fewer.may_read("user:ann")
    stream = await granted(ann(), use="stream", channels=["topic:a"])
    assert stream.may_read("topic:a")
    assert not stream.may_read("user:ann")


async def test_a_ticket_ends_with_the_token_it_was_made_with() -> None:
    until = time.time() + 100
    for body in ({"use": "connect", "ttl": 1000}, {"use": "stream", "ttl": 1000}, {"use": "connect"}):
        assert (await granted(ann(until), **body)).expires == pytest.approx(until)
    shorter = await granted(ann(until), use="stream", ttl=10)
    assert shorter.expires is not None
    assert shorter.expires < until - 80


@pytest.mark.parametrize("body", [
    {"use": "connect", "user": "bob"}, {"use": "connect", "channels": ["*"]}, {"use": "connect", "channels": ["topi*"]},
    {"use": "connect", "channels": ["room:b"]}, {"use": "connect", "channels": ["room:a*"]},
    {"use": "connect", "channels": ["user:bob"]}, {"use": "connect", "publish": ["topic:a"]},
    {"use": "connect", "publish": ["*"]}, {"use": "stream", "channels": ["room:b"]}, {"use": "stream", "user": "bob"},
    {"use": "stream", "channels": ["ringcast:nodes"]}, {"use": "stream", "channels": ["user:Ann"]},
])  # fmt: skip
def test_a_user_gets_nothing_it_does_not_hold(body: dict[str, Any]) -> None:
    assert refused(ann(), **body).code in ("forbidden", "bad_request")


def test_a_stream_ticket_begets_no_other_rights() -> None:
    bound = Identity("user:ann", "ann", channels=("topic:a",), expires=time.time() + 100)
    assert ask(bound, use="stream", channels=["topic:a"])
    assert refused(bound, use="stream", channels=["topic:b"]).code == "forbidden"
    assert refused(bound, use="connect", channels=["user:ann"]).code == "forbidden"


@pytest.mark.parametrize(("body", "says"), [
    ({}, "use"), ({"use": "steal"}, "steal"), ({"use": "connect", "uses": 1}, "uses"),
    ({"use": "stream"}, "channels is missing"), ({"use": "stream", "channels": []}, "channels is missing"),
    ({"use": "stream", "channels": ["topic:*"]}, "pattern"),
    ({"use": "stream", "channels": ["nonsense"]}, "neither"),
    ({"use": "stream", "channels": ["topic:a"], "publish": ["*"]}, "publish"),
    ({"use": "stream", "channels": ["topic:a", "topic:b", "topic:c", "topic:d"]}, "At most 3"),
    ({"use": "connect", "ttl": 0}, "more than 0"), ({"use": "connect", "ttl": "31d"}, "at most 30d"),
    ({"use": "connect", "ttl": "x"}, "duration"), ({"use": "connect", "user": "a b"}, "space"),
    ({"use": "connect", "channels": ["us*"]}, "us*"), ({"use": "connect", "channels": "topic:a"}, "array"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(body: dict[str, Any], says: str) -> None:
    problem = refused(SERVER, **body)
    assert problem.kind.status == 400
    assert says in problem.detail


def test_the_answer_says_until_when_and_which_partition() -> None:
    answer = ask(SERVER, use="connect", user="bob")
    assert answer["expires"].endswith("Z")
    assert answer["partition"] == partition_of("user:bob", SETTINGS.partitions)
    assert "partition" not in ask(SERVER, use="connect")


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"use":"connect","user":"\xff"}'])
def test_a_body_that_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(Problem):
        ticket(raw, SERVER, TICKETS, SETTINGS)
