"""Whose tokens are refused before their time, and that nobody comes in before that is known."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.auth import Authenticator, Credentials
from gateway.brokers.memory import MemoryBroker
from gateway.brokers.memory_store import MemoryStore
from gateway.errors import Problem
from gateway.identity import Identity
from gateway.metrics import Metrics
from gateway.node import Node
from gateway.revocations import REVOKED, Revocation, Revocations
from gateway.revoker import Revoker
from gateway.settings import Settings
from tests.support.door import HERE, authenticator, login
from tests.support.forge import KEY, signed

LATER = 1e10  # seconds since 1970: not in the time of this suite


def who(issued: float | None, user: str | None = "42") -> Identity:
    return Identity(f"user:{user}", user, issued=issued)


def test_what_was_issued_before_is_refused_and_what_was_issued_then_is_not() -> None:
    table = Revocations()
    table.put("42", Revocation(100.5, LATER))
    assert table.refuses(who(100.0))
    assert table.refuses(who(None))
    assert not table.refuses(who(100.5))
    assert not table.refuses(who(100.0, "43"))
    assert not table.refuses(who(None, None))  # nobody's: an API key


def test_a_revocation_is_never_taken_back_by_an_older_one() -> None:
    table = Revocations()
    table.put("42", Revocation(100.0, LATER))
    table.put("42", Revocation(50.0, LATER + 5))
    assert table.get("42") == Revocation(100.0, LATER + 5)
    table.put("42", Revocation(200.0, LATER))
    assert table.get("42") == Revocation(200.0, LATER + 5)


def test_one_is_over_when_no_such_token_can_live() -> None:
    table = Revocations()
    table.put("42", Revocation(100.0, time.time() - 1))
    assert not table.refuses(who(None))
    assert table.compare({}) == []
    assert len(table) == 0


def test_what_a_store_lost_or_holds_an_older_one_of_is_known() -> None:
    table = Revocations()
    for user, before in (("a", 100.0), ("b", 100.0), ("c", 100.0), ("d", 100.0)):
        table.put(user, Revocation(before, LATER))
    table.drop("d")
    assert table.compare({"a": 100.0, "b": 50.0}) == ["b", "c"]


async def test_whoever_was_told_that_it_is_revoked_need_not_wait_until_the_node_has_heard_it_too() -> None:
    settings = Settings(max_revocations=1)
    node = Node(settings, MemoryBroker(MemoryStore(settings)), Authenticator(settings), Metrics())
    await node.start()
    try:
        await node.revoker.table.known.wait()
        revoker = Revoker(node)  # which hears nothing
        for _ in range(2):  # it may be told again
            await revoker.revoke("42", 100.0)
            assert revoker.table.refuses(who(99.0))
        with pytest.raises(Problem, match="as many as may be") as caught:
            await revoker.revoke("43", 100.0)
    finally:
        await node.stop()
    assert caught.value.code == "too_many_keys"


async def test_users_wait_until_it_is_known_what_was_revoked_and_servers_do_not() -> None:
    auth = authenticator()
    auth.revocations = Revocations(known=False)
    old = asyncio.create_task(login(auth, signed(iat=time.time() - 100)))
    new = asyncio.create_task(login(auth, signed(iat=time.time())))
    ticket = auth.tickets.stream(who(time.time() - 100), ["user:42"]).text
    stream = asyncio.create_task(auth.authenticate(Credentials(HERE, ticket=ticket)))
    server = await login(auth, KEY)
    assert server is not None
    assert server.server
    assert not old.done()
    assert not new.done()
    auth.revocations.put("42", Revocation(time.time() - 50, LATER))
    auth.revocations.known.set()
    for refused in (old, stream):
        with pytest.raises(Problem, match=REVOKED) as caught:
            await refused
        assert caught.value.code == "unauthorised"
    identity = await new
    assert identity is not None
    assert identity.subject == "42"


async def test_nobody_waits_for_ever() -> None:
    auth = authenticator(open_within=0.05)
    auth.revocations = Revocations(known=False)
    with pytest.raises(Problem, match="does not know yet") as caught:
        await login(auth, signed())
    assert caught.value.code == "unavailable"
    assert caught.value.retry_after == 2
