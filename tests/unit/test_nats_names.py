"""Channels and keys as subjects, streams' names, and the broker's URL."""

from __future__ import annotations

import re

import pytest

from gateway.brokers.nats_link import Url
from gateway.brokers.nats_names import Names, token
from gateway.settings import ConfigError, Policy, Settings

ODD = ["a", "_", "@", "!", "", "a.b", "a>b", "a*", "a b", "%", "%5F", "ünï", "🎉" * 100, "🎉" * 101, "x" * 300, "a:b"]


def test_every_text_is_one_token_of_its_own() -> None:
    tokens = [token(text) for text in ODD]
    assert len(set(tokens)) == len(ODD)
    for each in tokens:
        assert re.fullmatch(r"[!-~]{1,300}", each)
        assert not set(each) & set(".*>")
        assert each not in ("_", "@", "!")


def test_logs_and_tables_are_streams_of_their_own() -> None:
    settings = Settings(broker="nats://h", channels={"room": Policy(keyed=True)})
    names = Names("rc", settings)
    log, table = names.number("topic:1"), names.number("room:1")
    assert log < 64 <= table < 128
    assert names.stream(log) == f"rc-l{log}"
    assert names.stream(table) == f"rc-k{table - 64}"
    for number in (log, table):
        assert names.number_of_live(f"{names.live(number)}.topic:1._") == number


def test_on_nats_there_are_64_partitions_unless_set() -> None:
    assert Settings(broker="nats://h").partitions == 64
    assert Settings(broker="nats://h", partitions=8).partitions == 8
    assert Settings().partitions == 1024


def test_a_url_names_servers_and_options() -> None:
    url = Url.parse("nats://u:p@a:1,b:2/?prefix=x&replicas=3&storage=memory")
    assert url.servers == ("nats://u:p@a:1", "nats://u:p@b:2")
    assert (url.prefix, url.replicas, url.storage) == ("x", 3, "memory")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nats://", "host"),
        ("nats://a:x", "host"),
        ("nats://a/?prefix=a.b", "prefix"),
        ("nats://a/?replicas=2", "replicas"),
        ("nats://a/?storage=disk", "storage"),
        ("nats://a/?replica=3", "no option 'replica'"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_a_sentence(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Url.parse(url)


def test_a_refusal_shows_no_password() -> None:
    with pytest.raises(ConfigError) as refused:
        Url.parse("nats://app:hunter2@a:x/?foo=1")
    assert "hunter2" not in str(refused.value)
