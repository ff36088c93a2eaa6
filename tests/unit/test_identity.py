from __future__ import annotations

import unicodedata

import pytest

from gateway.errors import Problem
from gateway.identity import ANONYMOUS, MAX_PATTERNS, Identity, check_pattern, user_identity


@pytest.mark.parametrize(
    ("pattern", "channel", "matches"),
    [
        ("topic:news", "topic:news", True),
        ("topic:news", "topic:news2", False),
        ("topic:news", "topic:New", False),
        ("topic:*", "topic:news", True),
        ("topic:*", "topics:news", False),
        ("room:berlin-*", "room:berlin-", True),
        ("room:berlin-*", "room:berlin-1", True),
        ("room:berlin-*", "room:berli", False),
        ("*", "anything:at-all", True),
        ("*", "presence:room:1", True),
        ("*", "ringcast:nodes", False),
        ("ringcast:*", "ringcast:nodes", False),
        ("ringcast:nodes", "ringcast:nodes", False),
        ("topic:caf\u00e9", "topic:cafe\u0301", False),  # composed and decomposed: not the same bytes
        ("topic:\uff11*", "topic:1", False),  # FULLWIDTH DIGIT ONE
        ("presence:*", "presence:topic:a", True),
        ("presence:topic:*", "presence:topic:a", True),
        ("presence:topic:*", "presence:room:a", False),
    ],
)
def test_a_pattern_matches_byte_for_byte_and_never_the_gateways_own(pattern: str, channel: str, matches: bool) -> None:
    assert Identity("user:7", "7", read=(pattern,)).may_read(channel) is matches
    publisher = Identity("user:7", "7", publish=(pattern,))
    assert publisher.may_publish(channel) is (matches and not channel.startswith("presence:"))


@pytest.mark.parametrize(
    "pattern",
    [
        "", "**", "topic", "topic:", "us*", "topic:*news", "topic:*:*", "presence:us*", "topic:a*b", "*:news",
        "*topic:news", "topic:a,b", "topic:a b", "TOPIC:*", "topic:**", "topic:a\u200b*", "topic:\ud800*",
        "topic:" + "x" * 201, 7, None, ["topic:*"],
    ],
)  # fmt: skip
def test_a_malformed_pattern_is_refused(pattern: object) -> None:
    with pytest.raises(ValueError, match="pattern"):
        check_pattern(pattern)


def test_a_user_reads_its_own_channels_and_nobody_elses() -> None:
    ann = user_identity("4")
    assert ann.principal == "user:4"
    assert ann.own_channels == ("user:4", "jobs:4")
    assert all(map(ann.may_read, ann.own_channels))
    assert not any(map(ann.may_read, ("user:42", "user:", "jobs:42", "user:4 ", "user:\u0664", "presence:user:42")))
    assert ann.may_read("presence:user:4")  # who reads a channel may know who else does
    assert not any(map(ann.may_publish, ("user:4", "jobs:4", "user:42")))


@pytest.mark.parametrize(
    "subject",
    [
        "4*", "*", "4,user:5", "4 5", "", " ", "x" * 201, "job.7", "job.", "a\n", "a\u2028b", "\u202e24", "\ud800",
        "a\u200bb", None, 42, 4.2, True, [], ["42"], {"id": "42"},
    ],
)  # fmt: skip
def test_a_subject_that_makes_no_channel_is_refused_with_the_reason(subject: object) -> None:
    with pytest.raises(ValueError, match="`sub`"):
        user_identity(subject)


def test_subjects_that_look_alike_are_different_users() -> None:
    looks = ["m\u00fcller", "mu\u0308ller", "\uff4d\u00fcller", "m\u00fcIler"]
    assert len({unicodedata.normalize("NFKC", look) for look in looks[:3]}) == 1
    for one in looks:
        assert [user_identity(one).may_read(f"user:{other}") for other in looks] == [one == other for other in looks]


@pytest.mark.parametrize("patterns", ["topic:news", {"topic:news": 1}, 7, ["topic:news", 7], ["user:4", "us*"]])
def test_claims_of_another_shape_are_refused(patterns: object) -> None:
    for read, publish, claim in ((patterns, None, "channels"), (None, patterns, "publish")):
        with pytest.raises(ValueError, match=f"`{claim}`"):
            user_identity("7", read, publish)


def test_the_number_of_patterns_is_limited() -> None:
    assert len(user_identity("7", [f"topic:{n}" for n in range(MAX_PATTERNS)]).read) == MAX_PATTERNS
    with pytest.raises(ValueError, match="1001 patterns"):
        user_identity("7", [f"topic:{n}" for n in range(MAX_PATTERNS + 1)])


@pytest.mark.parametrize("channel", ["jobs:42", "presence:topic:news", "ringcast:tickets", "ringcast:user.42"])
def test_nobody_publishes_to_reserved_channels(channel: str) -> None:
    everyone = [ANONYMOUS, Identity("key:0", server=True), Identity("user:42", "42", publish=("*", "jobs:*"))]
    for identity in everyone:
        assert not identity.may_publish(channel)
        with pytest.raises(Problem) as refusal:
            identity.check_publish(channel)
        assert refusal.value.code == "reserved_channel"


def test_a_server_publishes_anywhere_else_without_a_pattern() -> None:
    server = Identity("key:0", server=True)
    server.check_publish("user:42")
    with pytest.raises(Problem) as refusal:
        Identity("user:7", "7", publish=("topic:a*",)).check_publish("topic:b")
    assert refusal.value.code == "forbidden"


def test_an_identity_bound_to_channels_reads_those_alone() -> None:
    bound = Identity("user:7", "7", read=("*",), channels=("topic:news", "jobs:7", "ringcast:nodes"))
    assert bound.may_read("topic:news")
    assert bound.own_channels == ("jobs:7",)
    assert not any(map(bound.may_read, ("topic:other", "user:7", "ringcast:nodes")))
    with pytest.raises(Problem) as refusal:
        bound.check_read("user:7")
    assert refusal.value.code == "forbidden"
