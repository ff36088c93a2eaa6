"""What only the recording publishers have."""

from __future__ import annotations

from publisher.testing import AsyncRecordingPublisher, Recorded, RecordingPublisher, Verb


def test_messages_are_kept_as_their_subscribers_would_get_them() -> None:
    with RecordingPublisher(keyed=["room"]) as publisher:
        first = publisher.publish("user:42", {"order": 7}, event="order.shipped")
        publisher.publish(channels=["room:a", "room:b"], data=(1, 2), key="k", version=[3], ttl=60, id="x")
        publisher.publish("user:42", {"order": 7}, event="order.shipped", id=first.id)
        shipped, a, b = publisher.messages
        assert shipped == Recorded("user:42", first.offset, first.id, "order.shipped", {"order": 7})
        assert (a.channel, b.channel) == ("room:a", "room:b")
        assert (a.id, a.event, a.data, a.key, a.version, a.ttl) == ("x", "message", [1, 2], "k", (3,), 60.0)
        assert shipped.offset < a.offset < b.offset


def test_what_is_cleared_stays_known() -> None:
    publisher = RecordingPublisher()
    publisher.publish("user:42", 1, id="x")
    publisher.clear()
    assert publisher.messages == []
    assert publisher.publish("user:42", 1, id="x").duplicate
    assert publisher.messages == []


async def test_the_asynchronous_one_keeps_them_too() -> None:
    async with AsyncRecordingPublisher() as publisher:
        await publisher.publish(users=["1", "2"], data="hello")
        assert [message.channel for message in publisher.messages] == ["user:1", "user:2"]
        publisher.clear()
        assert publisher.messages == []


def test_verbs_are_kept_beside_the_messages() -> None:
    with RecordingPublisher() as publisher:
        publisher.subscribe("ann", ["room:1"])
        publisher.disconnect("ann", code="forbidden", hint="closed")
        publisher.disconnect("bob", revoke_before=5)
        assert publisher.verbs == [
            Verb("subscribe", "ann", ("room:1",)), Verb("disconnect", "ann", code="forbidden", hint="closed"),
            Verb("disconnect", "bob", revoke_before=5),
        ]  # fmt: skip
        assert not publisher.messages
        publisher.clear()
        assert not publisher.verbs
