"""What a publisher does, held by the real clients at a real gateway and by the recording ones alike."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from typing import Any

import pytest

from publisher import AsyncPublisher, InvalidMessage, Message, Publisher, Refused, TargetsFailed
from publisher.message import new_id
from publisher.testing import AsyncRecordingPublisher, RecordingPublisher
from tests.publisher.clients import Either
from tests.support.keys import API_KEY


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"toml": "[channels.room]\nkeyed = true\n"}


@pytest.fixture(params=["real", "real async", "recording", "recording async"])
async def publisher(request: pytest.FixtureRequest) -> AsyncIterator[Either]:
    client: Publisher | AsyncPublisher
    if request.param == "recording":
        client = RecordingPublisher(keyed=["room"])
    elif request.param == "recording async":
        client = AsyncRecordingPublisher(keyed=["room"])
    else:
        url = request.getfixturevalue("gateway").url
        client = Publisher(url, API_KEY) if request.param == "real" else AsyncPublisher(url, API_KEY)
    either = Either(client)
    yield either
    await either.close()


def channel() -> str:
    """One that no other test has used."""
    return f"topic:{new_id()}"


async def test_offsets_grow_and_contain_time(publisher: Either) -> None:
    news = channel()
    receipts = [await publisher.one(news, n) for n in range(5)]
    assert [receipt.channel for receipt in receipts] == [news] * 5
    assert all(not receipt.duplicate for receipt in receipts)
    offsets = [receipt.offset for receipt in receipts]
    assert offsets == sorted(set(offsets))
    now = datetime.datetime.now(datetime.UTC).timestamp()
    assert now - 60 < offsets[0] / 1e6 <= offsets[-1] / 1e6 < now + 60


async def test_without_an_id_each_message_has_its_own(publisher: Either) -> None:
    news = channel()
    first, second = await publisher.one(news), await publisher.one(news)
    assert len(first.id) == 26
    assert first.id != second.id


async def test_a_user_is_a_channel(publisher: Either) -> None:
    assert (await publisher.one(user="42", data={"order": 7}, event="order.shipped")).channel == "user:42"
    receipts = await publisher.publish(users=["1", "2"], data=None)
    assert [receipt.channel for receipt in receipts] == ["user:1", "user:2"]
    assert receipts[0].id == receipts[1].id


async def test_several_channels_get_a_receipt_each_in_their_order(publisher: Either) -> None:
    a, b = channel(), channel()
    receipts = await publisher.publish(channels=[b, a, b], data=1)
    assert [receipt.channel for receipt in receipts] == [b, a]
    [alone] = await publisher.publish(channels=[a], data=1)
    assert alone.channel == a


async def test_a_repeated_id_is_a_duplicate_at_the_first_offset(publisher: Either) -> None:
    news, other = channel(), channel()
    first = await publisher.one(news, {"n": 1}, id="order-7")
    again = await publisher.one(news, {"n": 1}, id="order-7")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert (again.offset, again.id) == (first.offset, "order-7")
    elsewhere = await publisher.one(other, {"n": 1}, id="order-7")
    assert not elsewhere.duplicate
    assert elsewhere.offset > first.offset


@pytest.mark.parametrize("other", [{"data": {"n": 2}}, {"data": {"n": 1}, "event": "other"}])
async def test_an_id_with_another_body_is_refused(publisher: Either, other: dict[str, Any]) -> None:
    news = channel()
    await publisher.publish(news, {"n": 1}, id="order-7")
    with pytest.raises(Refused) as refusal:
        await publisher.publish(news, id="order-7", **other)
    assert (refusal.value.code, refusal.value.status) == ("id_reused", 422)


@pytest.mark.parametrize("arguments", [
    {}, {"channel": "topic:a", "user": "42"}, {"channel": "nowhere"}, {"channels": []}, {"users": "42"},
    {"channel": "topic:a", "event": "error"}, {"channel": "topic:a", "event": "a\nb"},
    {"channel": "topic:a", "data": float("nan")}, {"channel": "topic:a", "data": object()},
    {"channel": "topic:a", "version": [1]}, {"channel": "room:a", "key": "k", "version": []},
    {"channel": "topic:a", "id": ""},
])  # fmt: skip
async def test_arguments_are_checked(publisher: Either, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage):
        await publisher.publish(**arguments)


@pytest.mark.parametrize("reserved", ["jobs:42", "presence:topic:a", "ringcast:nodes"])
async def test_reserved_namespaces_are_refused(publisher: Either, reserved: str) -> None:
    with pytest.raises(Refused) as refusal:
        await publisher.publish(reserved, 1)
    assert (refusal.value.code, refusal.value.status) == ("reserved_channel", 403)


async def test_a_key_needs_a_keyed_namespace(publisher: Either) -> None:
    with pytest.raises(Refused) as refusal:
        await publisher.publish(channel(), 1, key="k")
    assert (refusal.value.code, refusal.value.status) == ("key_not_allowed", 400)


async def test_a_version_that_is_not_newer_is_refused(publisher: Either) -> None:
    room = f"room:{new_id()}"
    await publisher.publish(room, 1, key="k", version=[1, 2])
    await publisher.publish(room, 2, key="k", version=[1, 2, 1])
    await publisher.publish(room, 2, key="other", version=[0])
    for stale in ([1, 2, 1], [1, 2], [0, 9]):
        with pytest.raises(Refused) as refusal:
            await publisher.publish(room, 3, key="k", version=stale)
        assert (refusal.value.code, refusal.value.status) == ("stale_version", 409)
    assert not (await publisher.one(room, None, key="k", version=[2], deleted=True)).duplicate
    assert not (await publisher.one(room, 3, key="k", ttl=60)).duplicate


async def test_a_repeat_of_a_versioned_message_is_a_duplicate_not_stale(publisher: Either) -> None:
    room = f"room:{new_id()}"
    first = await publisher.one(room, 1, key="k", version=[1], id="x")
    again = await publisher.one(room, 1, key="k", version=[1], id="x")
    assert again.duplicate
    assert again.offset == first.offset


async def test_a_message_that_is_too_large_is_refused(publisher: Either) -> None:
    await publisher.publish(channel(), "x" * (65536 - 2))
    with pytest.raises(Refused) as refusal:
        await publisher.publish(channel(), "x" * (65536 - 1))
    assert (refusal.value.code, refusal.value.status) == ("too_large", 413)


async def test_targets_that_fail_are_told_beside_those_that_do_not(publisher: Either) -> None:
    news = channel()
    with pytest.raises(TargetsFailed, match="1 of 2 targets failed; jobs:1: ") as failed:
        await publisher.publish(channels=[news, "jobs:1"], data=1)
    assert [receipt.channel for receipt in failed.value.receipts] == [news]
    refusal = failed.value.errors["jobs:1"]
    assert isinstance(refusal, Refused)
    assert refusal.code == "reserved_channel"


async def test_many_are_answered_in_order_and_fail_alone(publisher: Either) -> None:
    news = channel()
    items: list[Any] = [{"channel": news, "data": n, "id": f"n{n}"} for n in range(1200)]
    items[3] = Message(channel=news, data=float("nan"))
    items[5] = {"channel": "jobs:1"}
    items[7] = {"channels": [news, "jobs:1"]}
    items[700] = {"channel": news, "data": 0, "id": "n0"}
    outcomes = await publisher.many(items)
    assert [outcome.number for outcome in outcomes] == list(range(1, 1201))
    failed = {outcome.number - 1: outcome.error for outcome in outcomes if outcome.error is not None}
    assert {n: type(error) for n, error in failed.items()} == {3: InvalidMessage, 5: Refused, 7: TargetsFailed}
    assert outcomes[700].receipt.duplicate
    assert outcomes[700].receipt.offset == outcomes[0].receipt.offset
    fresh = [o.receipt.offset for n, o in enumerate(outcomes) if n not in failed and n != 700]
    assert fresh == sorted(set(fresh))


async def test_many_of_none_is_none(publisher: Either) -> None:
    assert await publisher.many([]) == []


async def test_verbs_are_acknowledged_and_a_repeated_one_is_a_duplicate(publisher: Either) -> None:
    user = new_id()
    for verb in ("subscribe", "unsubscribe"):
        first = await publisher.do(verb, user, ["room:1", "topic:x"], id=f"{verb}-1")
        again = await publisher.do(verb, user, ["room:1", "topic:x"], id=f"{verb}-1")
        assert (first.channel, first.id, first.duplicate) == (f"ringcast:user.{user}", f"{verb}-1", False)
        assert (again.offset, again.duplicate) == (first.offset, True)
    assert (await publisher.do("disconnect", user, code="token_expired", hint="new rights")).duplicate is False
    for moment in (1763712345, 1763712345.5, datetime.datetime.now(datetime.UTC)):
        receipt = await publisher.do("disconnect", user, revoke_before=moment)
        assert (receipt.channel, receipt.duplicate) == ("ringcast:revocations", False)
    listed = await publisher.do("connections", user)
    assert (listed.user, listed.total, listed.connections, listed.unanswered) == (user, 0, [], [])


async def test_verbs_that_cannot_be_meant_are_refused_before_they_are_sent(publisher: Either) -> None:
    with pytest.raises(InvalidMessage, match="time zone"):
        await publisher.do("disconnect", "u", revoke_before=datetime.datetime(2026, 1, 1))
    with pytest.raises(InvalidMessage, match="list of channels"):
        await publisher.do("subscribe", "u", "room:1")
