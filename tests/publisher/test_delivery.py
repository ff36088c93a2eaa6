"""A relay's one try at a batch: what is acknowledged, what is refused for good, and what has to be sent again."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from publisher.delivery import WHOLE, Delivery, Fault, Sent, trusted
from publisher.message import Message, prepare
from tests.publisher.faults import CUT, Reply, Request, faulty, problem, receipts

BATCH = [prepare(Message(channel="topic:a", data=n, id=f"id-{n}")) for n in range(3)]


def lines(*answers: dict[str, object] | None) -> Reply:
    """An answer of one line each; None for a line that is not answered."""
    told = [{"line": n, **answer} for n, answer in enumerate(answers, 1) if answer is not None]
    return Reply(body=b"".join(json.dumps(answer).encode() + b"\n" for answer in told))


def stored(duplicate: bool = False) -> dict[str, object]:
    return {"results": [{"channel": "topic:a", "offset": 7, "id": "x", "duplicate": duplicate}]}


def refused(status: int, code: str) -> dict[str, object]:
    return {"results": [{"channel": "topic:a", "error": error(status, code)}]}


def error(status: int, code: str) -> dict[str, object]:
    return {"type": "about:blank", "title": "t", "status": status, "code": code, "detail": f"a {code}"}


async def send(*script: Reply, batch: Sequence[int] = (0, 1, 2)) -> tuple[Sent, list[Request]]:
    async with faulty(*script) as server, Delivery(server.url, "secret-key") as delivery:
        return await delivery.send([BATCH[n] for n in batch]), server.requests


@pytest.mark.parametrize("batch", [(0, 1, 2), (1,)])
async def test_a_batch_is_one_ordered_stream_of_lines_also_of_a_single_one(batch: Sequence[int]) -> None:
    sent, [request] = await send(lines(*[stored() for _ in batch]), batch=batch)
    assert request.path == "/v1/publish?ordered=true"
    assert request.headers["content-type"] == "application/x-ndjson"
    assert request.ids == [f"id-{n}" for n in batch]
    assert (sent.acknowledged, sent.refused, sent.fault) == (set(range(len(batch))), {}, None)


async def test_what_was_stored_before_is_counted() -> None:
    sent, _ = await send(lines(stored(duplicate=True), stored(), stored(duplicate=True)))
    assert (sent.acknowledged, sent.duplicates) == ({0, 1, 2}, 2)


@pytest.mark.parametrize(("status", "code"), [
    (400, "bad_channel"), (403, "reserved_channel"), (403, "forbidden"), (409, "stale_version"), (413, "too_large"),
    (422, "id_reused"),
])  # fmt: skip
@pytest.mark.parametrize("whole", [True, False])
async def test_a_message_that_is_refused_for_good_is_told_apart(status: int, code: str, whole: bool) -> None:
    answer: dict[str, object] = {"error": error(status, code)} if whole else refused(status, code)
    sent, _ = await send(lines(stored(), answer, stored()))
    assert (sent.acknowledged, sent.fault) == ({0, 2}, None)
    assert {n: why.code for n, why in sent.refused.items()} == {1: code}


@pytest.mark.parametrize("answer", [
    refused(503, "unavailable"), refused(429, "rate_limited"), refused(500, "server_error"),
    {"error": error(401, "token_expired")}, None,
])  # fmt: skip
async def test_what_may_pass_later_is_left(answer: dict[str, object] | None) -> None:
    sent, _ = await send(lines(stored(), answer, stored()))
    assert (sent.acknowledged, sent.refused) == ({0, 2}, {})
    assert sent.fault is not None


@pytest.mark.parametrize("reply", [
    problem(400, "bad_request"), problem(401, "unauthorised"), problem(403, "forbidden"), problem(404, "not_found"),
    problem(413, "too_large"), problem(503, "draining"), Reply(413, b"<html>nginx</html>"),
    Reply(200, b"<html>It works!</html>\n"), CUT,
])  # fmt: skip
@pytest.mark.parametrize("batch", [(0, 1, 2), (1,)])
async def test_no_answer_to_the_whole_request_condemns_a_message(reply: Reply, batch: Sequence[int]) -> None:
    sent, requests = await send(reply, batch=batch)
    assert (sent.acknowledged, sent.refused) == (set(), {})
    assert sent.fault is not None
    assert len(requests) == 1, "a relay comes back by itself, with what is left"


async def test_a_cut_leaves_what_was_not_answered() -> None:
    async with faulty(lambda request: receipts(request, only=2)) as server, Delivery(server.url, "k") as delivery:
        sent = await delivery.send(BATCH)
    assert sent.acknowledged == {0, 1}
    assert sent.fault is not None


async def test_the_gateway_s_wish_for_a_pause_is_passed_on() -> None:
    sent, _ = await send(problem(429, "rate_limited", **{"Retry-After": "7"}))
    assert sent.fault is not None
    assert sent.fault.retry_after == 7


@pytest.mark.parametrize(("status", "code"), [(400, "bad_channel"), (403, "forbidden")])
async def test_a_log_that_nobody_can_look_into_holds_nothing_back(
    status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with faulty(problem(status, code)) as server, Delivery(server.url, "k") as delivery:
        assert await delivery.stored("topic:a", {"x"}, 1_700_000_000) == set()
    assert f"a {code}" in caplog.text


@pytest.mark.parametrize("reply", [
    problem(401, "unauthorised"), problem(503, "unavailable"), Reply(200, b"<html>"), CUT,
])  # fmt: skip
async def test_a_log_that_cannot_be_read_is_a_fault_and_no_proof(reply: Reply) -> None:
    async with faulty(reply) as server, Delivery(server.url, "k") as delivery:
        with pytest.raises(Fault):
            await delivery.stored("topic:a", {"x"}, 1_700_000_000)


@pytest.mark.parametrize("window", [1, 30, 61, 120, 300, 3600])
def test_a_try_that_needs_no_look_into_the_log_ends_while_ids_are_remembered(window: float) -> None:
    assert trusted(window) == 0 or trusted(window) + WHOLE < window
    assert trusted(window) <= window * 0.8
