"""Both clients against a server that fails in every way a network has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from publisher import AsyncPublisher, Outcome, Publisher, Refused, Retry, TargetsFailed, Unavailable
from tests.publisher.clients import Either
from tests.publisher.faults import CUT, FaultyServer, Reply, Request, faulty, problem, receipts

QUICK = Retry(deadline=10, timeout=5, base=0.001, cap=0.01)
Connect = Callable[..., Either]


@pytest.fixture(params=[Publisher, AsyncPublisher])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    clients: list[Either] = []

    def make(server: FaultyServer, retry: Retry = QUICK, **options: Any) -> Either:
        clients.append(Either(request.param(server.url, "secret-key", retry=retry, **options)))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.mark.parametrize("fault", [
    CUT,
    Reply(status=502, body=b"<html>Bad Gateway</html>"),
    problem(503, "unavailable"),
    problem(429, "rate_limited"),
    problem(500, "server_error"),
    Reply(body=b'{"results":[{"channel":"user:42"', headers={"Content-Length": "500"}, cut=500),
], ids=["cut", "502", "503", "429", "500", "half an answer"])  # fmt: skip
async def test_a_failed_try_is_repeated_under_the_same_id(connect: Connect, fault: Reply) -> None:
    async with faulty(fault, fault) as server:
        receipt = await connect(server).one("user:42", {"order": 7}, event="order.shipped")
        assert (receipt.channel, receipt.offset) == ("user:42", 1001)
        assert len(server.requests) == 3
        assert {request.ids[0] for request in server.requests} == {receipt.id}
        assert {request.body for request in server.requests} == {server.requests[0].body}
        assert server.requests[0].headers["authorization"] == "Bearer secret-key"


@pytest.mark.parametrize(("status", "code"), [
    (400, "bad_json"), (401, "unauthorised"), (403, "forbidden"), (422, "id_reused"),
])  # fmt: skip
async def test_a_refusal_is_not_repeated(connect: Connect, status: int, code: str) -> None:
    async with faulty(problem(status, code)) as server:
        with pytest.raises(Refused, match=f"a {code}") as refusal:
            await connect(server).publish("user:42")
        assert (refusal.value.status, refusal.value.code) == (status, code)
        assert len(server.requests) == 1


@pytest.mark.parametrize("reply", [
    Reply(status=404, body=b"<html>nginx</html>"), Reply(status=301, headers={"Location": "/"}), Reply(status=204),
])  # fmt: skip
async def test_what_is_no_gateway_is_refused_by_its_status(connect: Connect, reply: Reply) -> None:
    async with faulty(reply) as server:
        with pytest.raises(Refused, match=str(reply.status)) as refusal:
            await connect(server).publish("user:42")
        assert refusal.value.code == f"http_{reply.status}"


async def test_an_answer_without_receipts_is_not_taken_for_one(connect: Connect) -> None:
    async with faulty(Reply(body=b"<html>Welcome to the hotel's WLAN</html>")) as server:
        with pytest.raises(Refused, match="no receipts"):
            await connect(server).publish("user:42")


async def test_retry_after_is_waited_for(connect: Connect) -> None:
    async with faulty(problem(503, "unavailable", **{"Retry-After": "1"})) as server:
        began = time.monotonic()
        await connect(server).publish("user:42")
        assert 1.0 <= time.monotonic() - began < 5


async def test_a_retry_after_beyond_the_deadline_is_told_at_once(connect: Connect) -> None:
    async with faulty(problem(429, "rate_limited", **{"Retry-After": "60"})) as server:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="a rate_limited") as unavailable:
            await connect(server).publish("user:42", id="mine")
        assert time.monotonic() - began < 5
        assert unavailable.value.retry_after == 60
        assert unavailable.value.status == 429
        assert (unavailable.value.id, unavailable.value.attempts) == ("mine", 1)


async def test_the_deadline_ends_all_tries(connect: Connect) -> None:
    async with faulty(*[problem(503, "unavailable")] * 1000) as server:
        began = time.monotonic()
        with pytest.raises(Unavailable) as unavailable:
            await connect(server, Retry(deadline=0.5, base=0.01, cap=0.1)).publish("user:42")
        assert time.monotonic() - began < 2
        assert unavailable.value.attempts == len(server.requests) > 2


async def test_a_silent_server_is_left_after_the_timeout(connect: Connect) -> None:
    async with faulty(Reply(stall=True)) as server:
        receipt = await connect(server, Retry(deadline=10, timeout=0.2, base=0.001)).one("user:42")
        assert server.requests[0].ids == [receipt.id]


async def test_where_nobody_listens_it_is_unavailable(connect: Connect) -> None:
    async with faulty() as server:
        pass
    with pytest.raises(Unavailable) as unavailable:
        await connect(server, Retry(deadline=0.2, base=0.01)).publish("user:42")
    assert unavailable.value.status is None


async def test_lines_that_were_answered_before_a_cut_are_not_sent_again(connect: Connect) -> None:
    async with faulty(lambda request: receipts(request, only=2)) as server:
        outcomes = await connect(server).many({"channel": "topic:a", "data": n} for n in range(5))
        assert [outcome.number for outcome in outcomes] == [1, 2, 3, 4, 5]
        assert all(outcome.error is None for outcome in outcomes)
        first, second = server.requests
        assert second.ids == first.ids[2:]


async def test_a_line_that_may_pass_later_is_sent_again_and_others_are_not(connect: Connect) -> None:
    def mixed(request: Request) -> Reply:
        lines = receipts(request).body.split(b"\n")
        lines[1] = b'{"line":2,"error":{"status":503,"code":"unavailable","detail":"away"}}'
        lines[2] = b'{"line":3,"error":{"status":400,"code":"bad_event","detail":"no"}}'
        return Reply(body=b"\n".join(lines))

    async with faulty(mixed) as server:
        outcomes = await connect(server).many([{"channel": f"topic:{c}"} for c in "abcd"])
        assert [type(outcome.error) for outcome in outcomes] == [type(None), type(None), Refused, type(None)]
        assert outcomes[1].receipt.channel == "topic:b"
        assert server.requests[1].ids == [server.requests[0].ids[1]]


async def test_a_message_that_cannot_be_made_fails_alone(connect: Connect) -> None:
    async with faulty() as server:
        items = [{"channel": "topic:a"}, {"channel": "no channel"}, {"channel": "topic:a", "data": float("nan")}]
        first, second, third = await connect(server).many(items)
        assert first.receipt.offset == 1001
        assert "not a channel" in str(second.error)
        assert "not JSON" in str(third.error)
        with pytest.raises(ValueError, match="not a channel"):
            _ = second.receipt


async def test_a_stored_target_keeps_its_receipt_while_another_is_tried_again(connect: Connect) -> None:
    def half(request: Request) -> Reply:
        body = b'{"results":[{"channel":"topic:a","offset":7,"id":"x","duplicate":false},' \
            b'{"channel":"topic:b","error":{"status":503,"code":"unavailable","detail":"away"}}]}'
        return Reply(body=body)

    async with faulty(half) as server:
        a, b = await connect(server).publish(channels=["topic:a", "topic:b"], id="x")
        assert (a.channel, a.offset) == ("topic:a", 7)
        assert b.channel == "topic:b"
    async with faulty(*[half] * 1000) as server:
        with pytest.raises(TargetsFailed) as failed:
            await connect(server, Retry(deadline=0.2, base=0.01)).publish(channels=["topic:a", "topic:b"], id="x")
        assert [receipt.channel for receipt in failed.value.receipts] == ["topic:a"]
        assert isinstance(failed.value.errors["topic:b"], Unavailable)


async def test_outcomes_come_before_the_stream_has_ended() -> None:
    async with faulty() as server, AsyncPublisher(server.url, chunk=10) as publisher:
        taken = 0

        async def endless() -> AsyncIterator[dict[str, Any]]:
            nonlocal taken
            while True:
                taken += 1
                yield {"channel": "topic:a", "data": taken}

        async for outcome in publisher.publish_many(endless()):
            assert taken <= outcome.number + 10
            if outcome.number == 95:
                break
        assert [len(request.lines) for request in server.requests] == [10] * 10


def test_the_blocking_client_takes_no_more_than_a_request_holds() -> None:
    taken: list[int] = []

    def endless() -> Any:
        for n in iter(int, 1):
            taken.append(n)
            yield {"channel": "topic:a"}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=receipts(Request("POST", "", {}, request.read())).body)

    with Publisher("http://test.invalid", chunk=10, transport=httpx.MockTransport(answer)) as publisher:
        outcomes = publisher.publish_many(endless())
        first: Outcome = next(outcomes)
        assert first.number == 1
        assert len(taken) == 10


async def test_a_large_message_is_not_gathered_with_too_many_others(connect: Connect) -> None:
    async with faulty() as server:
        await connect(server).many({"channel": "topic:a", "data": "x" * 300_000} for _ in range(8))
        assert [len(request.lines) for request in server.requests] == [4, 4]


async def test_a_cancelled_publish_leaves_the_client_usable() -> None:
    async with faulty(Reply(stall=True)) as server, AsyncPublisher(server.url) as publisher:
        task = asyncio.create_task(publisher.publish("user:42"))
        await server.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await publisher.publish("user:42")).offset == 1001
