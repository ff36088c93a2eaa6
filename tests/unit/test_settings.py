"""The settings: which source wins, what is refused and in which words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.config import load
from gateway.settings import ConfigError, Policy, Settings

HMAC_KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("RINGCAST_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "ringcast.toml"
        path.write_text(text)
        return path

    return write


def refusal(config: Path | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config, **flags)
    return str(caught.value)


def test_flags_win_over_the_environment_which_wins_over_the_file(toml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toml('port = 1\nheartbeat = "1s"\ndrain = "1s"\nlinger = "1s"')
    monkeypatch.setenv("RINGCAST_HEARTBEAT", "2s")
    monkeypatch.setenv("RINGCAST_DRAIN", "2s")
    settings = load(config, drain="3s", host=None)
    assert (settings.port, settings.linger) == (1, 1)
    assert settings.heartbeat == 2
    assert settings.drain == 3
    assert settings.host == "127.0.0.1"


def test_the_environment_may_name_the_file(toml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGCAST_CONFIG", str(toml("port = 7")))
    assert load().port == 7


def test_an_empty_variable_counts_as_unset(toml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGCAST_PORT", "")
    assert load(toml("port = 7")).port == 7


def test_a_clients_variables_are_no_settings_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGCAST_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("RINGCAST_TOKEN", "t")
    assert load().port == 8000


@pytest.mark.parametrize(
    ("written", "meant"), [("250ms", 0.25), ("30s", 30), ("5m", 300), ("24h", 86400), ("30d", 2592000), ("1.5", 1.5)]
)
def test_durations(written: str, meant: float) -> None:
    assert load(linger=written).linger == meant


@pytest.mark.parametrize(("written", "meant"), [("7", 7), ("64KiB", 65536), ("16 MiB", 1 << 24), ("1GiB", 1 << 30)])
def test_sizes(written: str, meant: int) -> None:
    assert load(max_message=written).max_message == meant


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGCAST_API_KEYS", "one, two,,")
    assert load().api_keys == ["one", "two"]


def test_a_policy_applies_to_its_namespace_and_default_to_the_rest(toml: Any) -> None:
    settings = load(toml('[channels.room]\nhistory_ttl = "10m"\nkeyed = true\n[channels.default]\nhistory_size = 5'))
    assert settings.policy("room:1") == Policy(history_ttl=600, keyed=True)
    assert settings.policy("user:1") == Policy(history_size=5)
    assert settings.policy("jobs:1") == Policy(keyed=True, slow="latest")


def test_without_a_file_channels_keep_a_thousand_messages_for_a_quarter_of_an_hour() -> None:
    policy = load().policy("user:1")
    assert (policy.history_size, policy.history_ttl, policy.history_bytes) == (1000, 900, 16 << 20)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "prot in {path} is not a setting of Ringcast (did you mean port?)."),
        ("zzz = 1", "zzz in {path} is not a setting of Ringcast."),
        ("[channels.room]\nhist_size = 1",
         "channels.room.hist_size in {path} is not a setting of Ringcast (did you mean history_size?)."),
        ("[channels.room]\nhistory_size = 0", "channels.room.history_size in {path}: must be at least 1."),
        ("[channels.room]\nslow = 'no'", "channels.room.slow in {path}: must be 'catch_up' or 'latest'."),
        ("[channels]\nroom = 5",
         "channels.room in {path}: must be a table, such as [channels.room] and history_size = 100."),
        ("[channels.Room]",
         "channels in {path}: 'Room' is not a namespace ([a-z][a-z0-9_-]*), the part of a channel before ':'."),
        ("[channels.jobs]", "channels in {path}: the policy of 'jobs' is the gateway's own and cannot be set."),
        ("heartbeat = nan", "heartbeat in {path}: must be at least 0."),
        ("heartbeat = inf", "heartbeat in {path}: must be a finite number."),
        ("heartbeat = true", "heartbeat in {path}: True is not a duration; write for example 250ms, 30s, 5m or 24h."),
        ("heartbeat = []", "heartbeat in {path}: must be a duration such as 250ms, 30s, 5m or 24h."),
        ("check_interval = 0", "check_interval in {path}: must be more than 0."),
        ("api_keys = 5", "api_keys in {path}: must be a list of strings."),
    ],
)  # fmt: skip
def test_what_a_file_may_not_say(toml: Any, text: str, said: str) -> None:
    path = toml(text)
    assert refusal(path) == said.format(path=path)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("RINGCAST_PROT", "1", "RINGCAST_PROT is not a setting of Ringcast (did you mean RINGCAST_PORT?)."),
        ("RINGCAST_PORT", "x", "RINGCAST_PORT: must be a whole number."),
        ("RINGCAST_PORT", "70000", "RINGCAST_PORT: must be at most 65535."),
        ("RINGCAST_DRAIN", "5x", "RINGCAST_DRAIN: '5x' is not a duration; write for example 250ms, 30s, 5m or 24h."),
        ("RINGCAST_MAX_MESSAGE", "1kb",
         "RINGCAST_MAX_MESSAGE: '1kb' is not a size; write for example 65536, 64KiB or 16MiB."),
        ("RINGCAST_CHANNELS", "{}",
         "RINGCAST_CHANNELS: can only be set in a TOML file, as [channels.NAMESPACE] tables."),
        ("RINGCAST_TOKEN_IN_QUERY", "maybe", "RINGCAST_TOKEN_IN_QUERY: must be true or false."),
        ("RINGCAST_TRUSTED_PROXIES", "here",
         "RINGCAST_TRUSTED_PROXIES: 'here' is not an address or network such as 10.0.0.7 or 10.0.0.0/8."),
        ("RINGCAST_JWKS_URL", "keys.json", "RINGCAST_JWKS_URL: 'keys.json' is not an http:// or https:// URL."),
        ("RINGCAST_NODE", "a b", "RINGCAST_NODE: must be 1 to 100 letters, digits, '.', '_' or '-', "
         "beginning with a letter or digit."),
    ],
)  # fmt: skip
def test_what_the_environment_may_not_say(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    assert refusal() == said


def test_a_flag_is_named_as_it_was_written() -> None:
    assert refusal(drain_wait="soon").startswith("--drain-wait: 'soon' is not a duration")


def test_a_node_must_be_able_to_end_before_it_is_killed() -> None:
    assert Settings(drain_wait=5, drain=11, grace_period=30).drain == 11
    said = refusal(drain_wait="5s", drain="11.5s", grace_period="30s")
    assert "drain_wait (5s), drain (11.5s) and 14s for last words do not fit" in said
    assert "in grace_period (30s): set it to at least 30.5s" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("url", ["", "memory", "memory:", "memory://x", "amqp://:hunter2@h"])
def test_an_unknown_broker_is_refused_without_repeating_its_password(url: str) -> None:
    said = refusal(broker=url)
    assert said == "--broker: is not the URL of a broker; write memory://, redis://host:6379 or nats://host:4222."


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("HTTPS://App.Example.com:443", "https://app.example.com"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://[::1]:80", "http://[::1]"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("*", "*"),
    ],
)
def test_origins_are_kept_as_browsers_write_them(written: str, kept: str) -> None:
    assert load(allowed_origins=written).allowed_origins == [kept]


@pytest.mark.parametrize("origin", ["app.example.com", "https://a/", "https://a/path", "https://*.a", "null", "https://ä.de"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    assert "is not an origin; write scheme://host[:port]" in refusal(allowed_origins=origin)


def test_where_a_node_is_reached_is_an_address_without_more() -> None:
    assert Settings(advertise="https://gateway-1.example.com:8443/").advertise == "https://gateway-1.example.com:8443"
    for url in ("gateway-1:8000", "ws://gateway-1", "https://", "https://me:secret@gateway-1", "https://gateway-1/?a=b"):
        with pytest.raises(ValueError, match="not the address of a gateway"):
            Settings(advertise=url)


def test_a_ttl_of_presence_that_would_tell_leaves_at_each_restart_is_refused() -> None:
    room = {"room": Policy(presence=True)}
    with pytest.raises(ValueError, match="presence_ttl"):
        Settings(channels=room, presence_ttl=5)
    assert Settings(channels=room, presence_ttl=11).presence
    assert not Settings(presence_ttl=1).presence


def test_any_origin_together_with_cookies_is_refused() -> None:
    assert "would let every website act for your users" in refusal(allowed_origins="*", jwt_cookie="session")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com"])
def test_a_public_address_needs_keys_and_the_refusal_says_how_to_make_one(host: str) -> None:
    said = refusal(host=host)
    assert f"serving on {host} without keys would let anyone in" in said
    assert "secrets.token_urlsafe(32)" in said
    assert load(host=host, jwt_hmac_key=HMAC_KEY).host == host
    assert load(host=host, api_keys="k").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_a_loopback_address_needs_none(host: str) -> None:
    assert load(host=host).host == host


def test_secrets_are_neither_repeated_in_refusals_nor_shown_by_repr() -> None:
    assert refusal(jwt_hmac_key="hunter2").startswith("--jwt-hmac-key: has 7 bytes, at least 32 are needed; ")
    assert "hunter2" not in refusal(jwt_hmac_key="hunter2", api_keys="hunter2 x, sha256:hunter2")
    settings = Settings(jwt_hmac_key=HMAC_KEY, api_keys=["hunter2"])
    assert HMAC_KEY not in repr(settings)
    assert "hunter2" not in str(settings)


@pytest.mark.parametrize("key", ["sha256:abc", "sha256:" + "A" * 64, "with space", "ümlaut", "line\nbreak"])
def test_keys_that_could_never_match_are_refused(key: str) -> None:
    assert refusal(api_keys=[key]).startswith("--api-keys: key 1 ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, toml: Any) -> None:
    missing = tmp_path / "missing.toml"
    assert refusal(missing) == f"The configuration file {missing} cannot be read: No such file or directory."
    assert refusal(tmp_path) == f"The configuration file {tmp_path} cannot be read: Is a directory."
    broken = toml("port = ")
    assert refusal(broken).startswith(f"The configuration file {broken} is not TOML: Invalid value (at ")
    broken.write_bytes(b"\xff\xfe")
    assert "is not TOML" in refusal(broken)


def test_everything_wrong_is_told_at_once(toml: Any) -> None:
    assert len(refusal(toml("port = -1\nlinger = -1\nprot = 1")).splitlines()) == 3
