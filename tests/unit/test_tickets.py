from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest

from gateway.auth import Authenticator, Credentials
from gateway.brokers.memory import MemoryBroker
from gateway.brokers.memory_store import MemoryStore
from gateway.errors import Problem
from gateway.identity import ANONYMOUS, Identity, user_identity
from gateway.message import Message
from gateway.settings import Settings
from gateway.tickets import MAX_TICKET, TICKETS, NotATicket, Spend, Tickets, spend_by

SECRET = "the shared secret of these tests, which is long enough"
SETTINGS = Settings(jwt_hmac_key=SECRET)
ANN = user_identity("ann", ["topic:*"], ["room:1"], expires=5000.0)


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Nothing:
    """Listens to a broker and has no use for what it hears."""

    def message(self, partition: int, message: Message) -> None: ...
    def watermark(self, partition: int, offset: int) -> None: ...
    def gap(self, partition: int, offset: int) -> None: ...


async def never(jti: str, left: float) -> bool:
    raise AssertionError("a stream ticket is not spent")


@pytest.fixture
async def spend() -> AsyncIterator[Spend]:
    """Spends through a memory store, the way a node does."""
    broker = MemoryBroker(MemoryStore(SETTINGS))
    running = asyncio.create_task(broker.run(Nothing()))
    await broker.subscribe([])  # it runs
    yield spend_by(broker.publish)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def unsigned(ticket: str) -> list[Any]:
    body = ticket.split(".")[1]
    fields: list[Any] = json.loads(base64.urlsafe_b64decode(body + "=="))
    return fields


def with_body(ticket: str, fields: list[Any]) -> str:
    prefix, _, mac = ticket.split(".")
    return f"{prefix}.{base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b'=').decode()}.{mac}"


async def test_a_connect_ticket_stands_for_the_identity_it_was_made_of(spend: Spend) -> None:
    tickets = Tickets(SETTINGS, Clock())
    ticket = tickets.connect(ANN)
    assert ticket.expires == 1060
    assert await tickets.redeem(ticket.text, spend) == ANN


async def test_a_connect_ticket_is_good_once(spend: Spend) -> None:
    tickets = Tickets(SETTINGS, Clock())
    first, second = tickets.connect(ANN).text, tickets.connect(ANN).text
    await tickets.redeem(first, spend)
    with pytest.raises(NotATicket):
        await tickets.redeem(first, spend)
    await tickets.redeem(second, spend)


async def test_of_many_at_once_on_several_nodes_one_gets_in(spend: Spend) -> None:
    nodes = [Tickets(SETTINGS, Clock()) for _ in range(5)]
    ticket = nodes[0].connect(ANN).text
    outcomes = await asyncio.gather(*(nodes[n % 5].redeem(ticket, spend) for n in range(100)), return_exceptions=True)
    assert outcomes.count(ANN) == 1
    assert sum(isinstance(outcome, NotATicket) for outcome in outcomes) == 99


async def test_a_ticket_is_refused_when_nobody_can_tell_whether_it_was_spent() -> None:
    broker = MemoryBroker(MemoryStore(SETTINGS))  # does not run: unavailable
    tickets = Tickets(SETTINGS, Clock())
    with pytest.raises(Problem) as refusal:
        await tickets.redeem(tickets.connect(ANN).text, spend_by(broker.publish))
    assert refusal.value.code == "unavailable"


async def test_a_spent_ticket_leaves_only_its_id_in_a_channel_nobody_reads(spend: Spend) -> None:
    settings = Settings(jwt_hmac_key=SECRET)
    store = MemoryStore(settings)
    broker = MemoryBroker(store)
    running = asyncio.create_task(broker.run(Nothing()))
    await broker.subscribe([])
    tickets = Tickets(settings, Clock())
    ticket = tickets.connect(ANN).text
    await tickets.redeem(ticket, spend_by(broker.publish))
    [message] = (await broker.read(TICKETS, 0, 10)).messages
    assert message.id == unsigned(ticket)[1]
    assert message.data == b"null"
    assert not ANONYMOUS.may_read(TICKETS)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_expired_ticket_is_told_apart_and_not_spent() -> None:
    clock = Clock()
    tickets = Tickets(SETTINGS, clock)
    for ticket in (tickets.connect(ANN), tickets.stream(ANN, ["topic:a"], 60)):
        clock.now = 1060.0
        with pytest.raises(Problem) as refusal:
            await tickets.redeem(ticket.text, never)
        assert refusal.value.code == "token_expired"
        clock.now = 1000.0


async def test_a_stream_ticket_is_good_until_its_end_and_for_its_channels_alone() -> None:
    clock = Clock()
    tickets = Tickets(SETTINGS, clock)
    ticket = tickets.stream(ANN, ["topic:a", "user:ann"], 600).text
    for clock.now in (1000.0, 1300.0, 1599.0):
        identity = await tickets.redeem(ticket, never)
        assert identity.expires == 1600
        assert identity.own_channels == ("user:ann",)
        assert identity.may_read("topic:a")
        assert not any(map(identity.may_read, ("topic:b", "topic:a2", "topic:", "jobs:ann", "ringcast:tickets")))
        assert not identity.may_publish("room:1")


async def test_a_stream_ticket_cannot_be_made_for_what_its_owner_may_not_read() -> None:
    tickets = Tickets(SETTINGS, Clock())
    for channel in ("room:1", "user:bob", "ringcast:nodes"):
        with pytest.raises(Problem) as refusal:
            tickets.stream(ANN, ["topic:a", channel])
        assert refusal.value.code == "forbidden"


async def test_no_ticket_outlives_the_token_it_was_made_with(spend: Spend) -> None:
    tickets = Tickets(SETTINGS, Clock())
    brief = user_identity("ann", ["topic:*"], expires=1010.0)
    assert tickets.connect(brief).expires == 1010
    assert tickets.stream(brief, ["topic:a"]).expires == 1010
    assert (await tickets.redeem(tickets.connect(brief).text, spend)).expires == 1010
    assert tickets.stream(ANN, ["topic:a"]).expires == 1000 + 3600  # stream_ticket_ttl
    bound = await tickets.redeem(tickets.stream(ANN, ["topic:a"], 20).text, never)
    again = await tickets.redeem(tickets.connect(bound).text, spend)
    assert (again.channels, again.expires) == (("topic:a",), 1020)


async def test_no_ticket_carries_the_rights_of_a_server(spend: Spend) -> None:
    tickets = Tickets(SETTINGS, Clock())
    identity = await tickets.redeem(tickets.connect(ANONYMOUS).text, spend)
    assert not identity.server
    assert identity.may_publish("topic:a")
    assert not identity.may_publish("jobs:a")


ALTERATIONS: list[tuple[str, int, Any]] = [
    ("another use", 0, "stream"), ("another id", 1, "x"), ("a later end", 2, 1e12),
    ("another principal", 3, "user:bob"), ("another user", 4, "bob"), ("more to read", 5, ["*"]),
    ("more to publish", 6, ["*"]), ("channels", 7, ["topic:b"]), ("no expiry", 8, None),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [each[1:] for each in ALTERATIONS], ids=[each[0] for each in ALTERATIONS])
async def test_an_altered_body_is_refused(field: int, value: Any) -> None:
    tickets = Tickets(SETTINGS, Clock())
    for ticket in (tickets.connect(ANN).text, tickets.stream(ANN, ["topic:a"]).text):
        fields = unsigned(ticket)
        if fields[field] == value:
            continue
        fields[field] = value
        with pytest.raises(NotATicket):
            await tickets.redeem(with_body(ticket, fields), never)


async def test_every_changed_character_is_noticed() -> None:
    tickets = Tickets(SETTINGS, Clock())
    ticket = tickets.stream(ANN, ["topic:a"]).text
    assert await tickets.redeem(ticket, never)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    for place, character in enumerate(ticket):
        # The neighbour in the alphabet: also changes what only the spare bits of a last character hold.
        other = alphabet[alphabet.index(character) ^ 1] if character != "." else "A"
        with pytest.raises(NotATicket):
            await tickets.redeem(ticket[:place] + other + ticket[place + 1 :], never)


@pytest.mark.parametrize(
    "ticket",
    [
        "", ".", "rct1", "rct1..", "rct1.e30." + "A" * 43, "rct1." + "A" * MAX_TICKET + "." + "A" * 43, "rct1.\ud800.x",
        "\x00",
    ],
)  # fmt: skip
async def test_garbage_is_refused(ticket: str) -> None:
    with pytest.raises(NotATicket):
        await Tickets(SETTINGS, Clock()).redeem(ticket, never)


async def test_nodes_with_the_same_keys_accept_each_others_tickets_and_no_others() -> None:
    hashed = "sha256:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"  # of "key"
    same = [
        (Settings(jwt_hmac_key=SECRET, api_keys=["a"]), Settings(jwt_hmac_key=SECRET, api_keys=["b"])),
        (Settings(api_keys=["key", "other"]), Settings(api_keys=["other", hashed])),
    ]
    for one, other in same:
        ticket = Tickets(one, Clock()).stream(ANN, ["topic:a"]).text
        assert await Tickets(other, Clock()).redeem(ticket, never)
    different = [Settings(jwt_hmac_key=SECRET), Settings(jwt_hmac_key=SECRET + "2"), Settings(api_keys=["key"])]
    different += [Settings(), Settings()]  # no keys: each process has its own
    for one in different:
        ticket = Tickets(one, Clock()).stream(ANN, ["topic:a"]).text
        for other in different:
            if other is not one:
                with pytest.raises(NotATicket):
                    await Tickets(other, Clock()).redeem(ticket, never)


async def test_a_ticket_too_long_for_a_url_is_not_made() -> None:
    tickets = Tickets(SETTINGS, Clock())
    with pytest.raises(Problem) as refusal:
        tickets.stream(ANN, [f"topic:{n:0200}" for n in range(20)])
    assert refusal.value.code == "too_large"
    text = tickets.stream(ANN, [f"topic:{n}" for n in range(200)]).text
    assert len(text) <= MAX_TICKET
    assert await tickets.redeem(text, never)


async def test_tickets_and_tokens_are_never_taken_for_each_other(spend: Spend) -> None:
    auth = Authenticator(Settings(jwt_hmac_key=SECRET, api_keys=["key"]), spend=spend)
    ticket = auth.tickets.connect(user_identity("ann", expires=time.time() + 60)).text
    token = jwt.encode({"sub": "ann", "exp": time.time() + 60}, SECRET, algorithm="HS256")
    wrong = [
        Credentials("192.0.2.1", authorization=f"Bearer {ticket}"), Credentials("192.0.2.1", token=ticket),
        Credentials("192.0.2.1", subprotocols=[f"bearer.{ticket}"]), Credentials("192.0.2.1", ticket=token),
        Credentials("192.0.2.1", ticket="rct1." + token), Credentials("192.0.2.1", ticket="key"),
        Credentials("192.0.2.1", ticket=""), Credentials("192.0.2.1", ticket=ticket + "x"),
    ]  # fmt: skip
    answers = set()
    for credentials in wrong:
        with pytest.raises(Problem) as refusal:
            await auth.authenticate(credentials)
        answers.add(json.dumps(refusal.value.as_json()))
    assert len(answers) == 1
    assert await auth.authenticate(Credentials("192.0.2.1", ticket=ticket))
    with pytest.raises(Problem) as refusal:
        await auth.authenticate(Credentials("192.0.2.1", ticket=ticket))
    assert json.dumps(refusal.value.as_json()) in answers


async def test_a_ticket_works_where_there_are_no_keys(spend: Spend) -> None:
    auth = Authenticator(Settings(), spend=spend)
    ticket = auth.tickets.stream(ANONYMOUS, ["topic:a"]).text
    identity = await auth.authenticate(Credentials("127.0.0.1", host="localhost:8000", ticket=ticket))
    assert isinstance(identity, Identity)
    assert not identity.server
    assert identity.channels == ("topic:a",)


async def test_a_wiring_that_forgot_to_spend_is_a_fault_and_lets_nobody_in() -> None:
    auth = Authenticator(SETTINGS)
    with pytest.raises(RuntimeError, match="spend"):
        await auth.authenticate(Credentials("192.0.2.1", ticket=auth.tickets.connect(ANONYMOUS).text))
