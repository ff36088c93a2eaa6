"""`ringcast` as a person or a script uses it: real processes, a real gateway, what they print and how they end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from gateway.message import decode_cursor, new_id
from tests.support.command import ROOT, Running, environment, ringcast
from tests.support.gateway import Gateway, free_port
from tests.support.keys import API_KEY, HMAC_KEY, token

TRANSPORTS = ("ws", "sse", "poll")


def topic() -> str:
    """One that no other test has used."""
    return f"topic:{new_id().lower()}"


def client(gateway: Gateway) -> dict[str, str]:
    return {"RINGCAST_URL": gateway.url, "RINGCAST_API_KEY": API_KEY}


def reader(gateway: Gateway, *channels: str) -> dict[str, str]:
    return {"RINGCAST_URL": gateway.url, "RINGCAST_TOKEN": token("ann", channels)}


def cursor_of(stderr: str) -> str:
    return stderr.splitlines()[-1].removeprefix("cursor ")


# publish


def test_publish_prints_the_receipt(gateway: Gateway) -> None:
    news = topic()
    done = ringcast("publish", news, '{"order": 7}', "--event", "order.shipped", "--id", "o7", **client(gateway))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{news} offset=")
    assert done.stdout.endswith(" id=o7\n")
    again = ringcast("publish", news, '{"order": 7}', "--event", "order.shipped", "--id", "o7", **client(gateway))
    assert again.stdout == done.stdout[:-1] + " (a duplicate: it was stored before)\n"


def test_publish_prints_json_for_scripts_and_reads_stdin(gateway: Gateway) -> None:
    news = topic()
    data = '{"n": 1.10,\n"big": 18446744073709551617}'
    done = ringcast("publish", news, "-", "--json", stdin=data, **client(gateway))
    receipt = json.loads(done.stdout)
    assert (done.returncode, receipt["channel"], receipt["duplicate"]) == (0, news, False)
    with Running("listen", news, "--since", "earliest", "--count", "1", "--json", **client(gateway)) as listening:
        assert '"data":{"n":1.10,"big":18446744073709551617}' in listening.line(), "not to the letter"
        assert listening.end() == 0


@pytest.mark.parametrize(("arguments", "env", "code", "sentence"), [
    (["nowhere", "1"], {}, 2, "'nowhere' is not a channel"),
    (["topic:a", "{"], {}, 2, "ringcast: data is not JSON"),
    (["topic:a", "NaN"], {}, 2, "ringcast: data is not JSON"),
    (["topic:a", "1", "--event", "error"], {}, 2, "ringcast: event 'error' is reserved"),
    (["topic:a", "1", "--url", "localhost:8000"], {}, 2, "ringcast: the gateway's URL must look like https://host"),
    (["topic:a", "1"], {"RINGCAST_URL": "http://u:hunter2@x"}, 2, "must not hold a password"),
    (["topic:a", "1"], {"RINGCAST_API_KEY": "a\u00e9"}, 2, "ringcast: the API key holds characters that no HTTP"),
    (["topic:a"], {}, 2, "Missing argument 'JSON'"),
    (["topic:a", "1", "--bogus"], {}, 2, "No such option: --bogus"),
    (["topic:a", "1"], {"RINGCAST_API_KEY": "wrong"}, 1, "ringcast: refused (401 unauthorised): "),
    (["jobs:1", "1"], {}, 1, "ringcast: refused (403 reserved_channel): "),
    (["topic:a", "1", "--key", "k"], {}, 1, "ringcast: refused (400 key_not_allowed): "),
])  # fmt: skip
def test_publish_says_what_is_wrong(
    gateway: Gateway, arguments: list[str], env: dict[str, str], code: int, sentence: str
) -> None:
    done = ringcast("publish", *arguments, **(client(gateway) | env))
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "hunter2" not in done.stderr


def test_publish_gives_up_where_there_is_no_gateway() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = ringcast("publish", "topic:a", "1", "--timeout", "0.5", RINGCAST_URL=url)
    assert done.returncode == 1
    assert "not acknowledged after " in done.stderr
    assert done.stderr.count("\n") == 1


# listen


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_listen_prints_one_message_a_line(gateway: Gateway, transport: str) -> None:
    news = topic()
    gateway.publish(news, {"n": 1}, event="first")
    arguments = ("listen", news, "--transport", transport, "--since", "earliest", "--count", "3")
    with Running(*arguments, **reader(gateway, news)) as listening:
        assert listening.line().endswith(f'{news}  first  {{"n":1}}')
        gateway.publish(news, "two\u2028\u009b31m\n", event="second")
        assert listening.line().endswith(f'{news}  second  "two\\u2028\\x9b31m\\n"'), "a terminal took commands"
        gateway.publish(news, None, event="third")
        assert listening.line().endswith(f"{news}  third  null")
        assert listening.end() == 0
        assert f"connected over {transport}" in listening.said["err"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_listen_prints_json_lines(gateway: Gateway, transport: str) -> None:
    news = topic()
    receipt = gateway.publish(news, {"n": 1}, event="first")
    arguments = ("listen", news, "--transport", transport, "--since", "earliest", "--count", "1", "--json")
    with Running(*arguments, **reader(gateway, news)) as listening:
        message = listening.json()
        assert message.pop("time").endswith("Z")
        assert message == {
            "type": "message", "channel": news, "offset": receipt["offset"], "id": receipt["id"], "event": "first",
            "data": {"n": 1},
        }  # fmt: skip
        assert listening.end() == 0
        assert listening.said["err"].count("\n") == 1
        assert decode_cursor(cursor_of(listening.said["err"]), 4096)[news] == receipt["offset"]


@pytest.mark.parametrize(("first", "then"), [("ws", "sse"), ("sse", "poll"), ("poll", "ws")])
def test_a_cursor_continues_over_another_transport(gateway: Gateway, first: str, then: str) -> None:
    news = topic()
    for n in range(4):
        gateway.publish(news, n)
    begin = ("listen", news, "--transport", first, "--since", "1h", "--count", "2", "--json")
    with Running(*begin, **client(gateway)) as listening:
        assert [listening.json()["data"] for _ in range(2)] == [0, 1]
        assert listening.end() == 0
        cursor = cursor_of(listening.said["err"])
    go_on = ("listen", news, "--transport", then, "--cursor", cursor, "--count", "2", "--json")
    with Running(*go_on, **client(gateway)) as listening:
        assert [listening.json()["data"] for _ in range(2)] == [2, 3]
        assert listening.end() == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_since_begins_where_it_says(gateway: Gateway, transport: str) -> None:
    news = topic()
    gateway.publish(news, "old")
    border = time.time() + 0.5
    time.sleep(1)  # a time is what is asked for
    gateway.publish(news, "new")
    since = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(border))}.{int(border % 1 * 1000):03d}Z"
    arguments = ("listen", news, "--transport", transport, "--since", since, "--count", "1", "--json")
    with Running(*arguments, **reader(gateway, news)) as listening:
        assert listening.json()["data"] == "new"
        assert listening.end() == 0


def test_a_token_s_own_channels_need_no_naming(gateway: Gateway) -> None:
    gateway.publish("user:ann", "for ann")
    with Running("listen", "--since", "earliest", "--count", "1", "--json", **reader(gateway)) as listening:
        assert listening.json()["channel"] == "user:ann"
        assert listening.end() == 0


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_listen_survives_a_killed_gateway_and_shows_the_reset(transport: str, as_json: bool) -> None:
    news = topic()
    flags = ("--json",) if as_json else ()
    with Gateway() as gateway:
        gateway.publish(news, "before")
        arguments = ("listen", news, "--transport", transport, "--since", "earliest", "--count", "2", *flags)
        with Running(*arguments, **client(gateway)) as listening:
            assert "before" in listening.line()
            gateway.restart(kill=True)
            if as_json:
                reset = listening.json()
                assert (reset["type"], reset["channel"], reset["reason"]) == ("reset", news, "lost")
            else:
                listening.until(f"reset {news}: messages may be missing here (lost)")
            gateway.publish(news, "after")
            assert "after" in listening.line()
            assert listening.end() == 0


def test_listen_ends_by_ctrl_c_and_tells_its_cursor(gateway: Gateway) -> None:
    news = topic()
    with Running("listen", news, **reader(gateway, news)) as listening:
        listening.until("connected over ws")
        assert listening.end(signal.SIGINT) == 130
        assert news in decode_cursor(cursor_of(listening.said["err"]), 4096)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("arguments", "env", "sentence"), [
    (["topic:a"], {"RINGCAST_TOKEN": "nonsense"}, "ringcast: refused: "),
    (["topic:a"], {"RINGCAST_TOKEN": token("ann", ["topic:a"], expires_in=-3600)}, "xpired"),
    (["topic:forbidden"], {}, "ringcast: refused: "),
    (["topic:a", "--since", "yesterday"], {}, "since is latest, earliest"),
])  # fmt: skip
def test_listen_says_why_it_is_refused(
    gateway: Gateway, transport: str, arguments: list[str], env: dict[str, str], sentence: str
) -> None:
    done = ringcast("listen", *arguments, "--transport", transport, **(reader(gateway, "topic:a") | env))
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert sentence in done.stderr


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["nowhere"], "ringcast: channel 'nowhere' must begin with a namespace"),
    (["topic:a", "--cursor", "?"], "ringcast: the cursor is not base64url"),
    (["topic:a", "--url", "ftp://x"], "ringcast: the gateway's URL must look like"),
    (["topic:a", "--transport", "pigeon"], "ringcast: there is no transport 'pigeon': use auto, ws, sse or poll."),
])  # fmt: skip
def test_listen_says_what_is_wrong(arguments: list[str], sentence: str) -> None:
    done = ringcast("listen", *arguments, RINGCAST_TOKEN="a")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


# token


def test_a_token_opens_the_gateway_it_was_made_for(gateway: Gateway) -> None:
    news = topic()
    gateway.publish(news, 1)
    made = ringcast("token", "--user", "bob", "--channel", news, "--publish", "topic:*", RINGCAST_JWT_HMAC_KEY=HMAC_KEY)
    assert made.returncode == 0
    env = {"RINGCAST_URL": gateway.url, "RINGCAST_TOKEN": made.stdout.strip()}
    assert ringcast("listen", news, "--since", "earliest", "--count", "1", **env).returncode == 0
    assert ringcast("publish", topic(), "1", **env).returncode == 0
    assert ringcast("publish", "user:bob", "1", **env).returncode == 1


def test_a_token_says_what_it_was_asked_to(tmp_path: Path) -> None:
    config = tmp_path / "ringcast.toml"
    config.write_text('jwt_audience = "ringcast"\njwt_issuer = "me"\n')
    made = ringcast(
        "token", "--user", "bob", "--channel", "topic:*", "--channel", "room:1", "--ttl", "5m", "--json",
        "--config", str(config), RINGCAST_JWT_HMAC_KEY=HMAC_KEY,
    )  # fmt: skip
    answer = json.loads(made.stdout)
    claims = jwt.decode(answer["token"], HMAC_KEY, ["HS256"], audience="ringcast", issuer="me")
    assert (claims["sub"], claims["channels"]) == ("bob", ["topic:*", "room:1"])
    assert claims["exp"] == answer["expires"]
    assert 299 <= claims["exp"] - claims["iat"] <= 301
    assert "publish" not in claims


@pytest.mark.parametrize(("arguments", "env", "sentence"), [
    (["--user", "bob"], {}, "set RINGCAST_JWT_HMAC_KEY"),
    (["--user", "bob"], {"RINGCAST_JWT_HMAC_KEY": "short"}, "RINGCAST_JWT_HMAC_KEY: has 5 bytes, at least 32"),
    (["--user", "a b"], {"RINGCAST_JWT_HMAC_KEY": HMAC_KEY}, "`sub` does not make a channel"),
    (["--user", "bob", "--ttl", "soon"], {"RINGCAST_JWT_HMAC_KEY": HMAC_KEY}, "'soon' is not a duration"),
    (["--user", "bob", "--ttl", "0"], {"RINGCAST_JWT_HMAC_KEY": HMAC_KEY}, "more than 0 seconds"),
    (["--user", "bob", "--channel", "us*"], {"RINGCAST_JWT_HMAC_KEY": HMAC_KEY}, "pattern 'us*'"),
    ([], {"RINGCAST_JWT_HMAC_KEY": HMAC_KEY}, "Missing option '--user'"),
])  # fmt: skip
def test_token_says_what_is_wrong(arguments: list[str], env: dict[str, str], sentence: str) -> None:
    done = ringcast("token", *arguments, **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


# config check and serve


def test_config_check_prints_settings_without_secrets(tmp_path: Path) -> None:
    config = tmp_path / "ringcast.toml"
    config.write_text('port = 1234\nheartbeat = "2s"\n[channels.room]\nkeyed = true\nhistory_ttl = "10m"\n')
    env = {"RINGCAST_API_KEYS": "geheim1,geheim2", "RINGCAST_JWT_HMAC_KEY": "geheim" * 6, "RINGCAST_PORT": "4321"}
    done = ringcast("config", "check", "--config", str(config), **env)
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("port = 4321", "heartbeat = 2.0", "keyed = true", "history_ttl = 600.0", "[channels.room]",
                 'api_keys = ["(hidden)", "(hidden)"]', 'jwt_hmac_key = "(hidden)"'):  # fmt: skip
        assert f"{line}\n" in done.stdout
    as_json = ringcast("config", "check", "--json", RINGCAST_CONFIG=str(config), **env)
    shown: dict[str, Any] = json.loads(as_json.stdout)
    assert (shown["port"], shown["channels"]["room"]["keyed"]) == (4321, True)
    assert "geheim" not in done.stdout + as_json.stdout


CONFIGURATIONS: list[tuple[list[str], dict[str, str], str, str]] = [
    ([], {"RINGCAST_PROT": "1"}, "", "RINGCAST_PROT is not a setting of Ringcast (did you mean RINGCAST_PORT?)."),
    ([], {}, "prot = 1", "prot in {file} is not a setting of Ringcast"),
    ([], {}, "port = [", "{file} is not TOML"),
    ([], {"RINGCAST_PORT": "http"}, "", "RINGCAST_PORT: must be a whole number."),
    ([], {"RINGCAST_BROKER": "nonsense"}, "", "RINGCAST_BROKER: is not the URL of a broker"),
    ([], {"RINGCAST_HOST": "0.0.0.0"}, "", "would let anyone in; set RINGCAST_API_KEYS"),
    ([], {"RINGCAST_CONFIG": "/nonexistent/file"}, "", "/nonexistent/file cannot be read: No such file or directory."),
    ([], {"RINGCAST_CONFIG": "/"}, "", "The configuration file / cannot be read: Is a directory."),
]


@pytest.mark.parametrize("command", [("config", "check"), ("serve",)])
@pytest.mark.parametrize(("arguments", "env", "toml", "sentence"), CONFIGURATIONS)
def test_a_wrong_configuration_is_told_in_one_sentence(
    command: tuple[str, ...], arguments: list[str], env: dict[str, str], toml: str, sentence: str, tmp_path: Path
) -> None:
    config = tmp_path / "ringcast.toml"
    if toml:
        config.write_text(toml)
        arguments = [*arguments, "--config", str(config)]
    done = ringcast(*command, *arguments, **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence.format(file=config) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("arguments", "env", "sentence"), [
    (["--port", "http"], {}, "--port: must be a whole number."),
    (["--port", "70000"], {}, "--port: must be at most 65535."),
    (["--broker", "amqp://x"], {}, "--broker: is not the URL of a broker; write memory://, redis://host:6379 or nats://"),
    (["--drain-wait", "soon"], {}, "--drain-wait: 'soon' is not a duration"),
    (["--node", "a b"], {}, "--node: must be 1 to 100 letters"),
    (["--host", "203.0.113.1"], {"RINGCAST_API_KEYS": "k"}, "ringcast: cannot listen on 203.0.113.1 port 8000: "),
    (["--host", "nowhere.invalid"], {"RINGCAST_API_KEYS": "k"}, "cannot listen on nowhere.invalid port 8000: "),
    ([], {"RINGCAST_JWT_PUBLIC_KEY": "/nonexistent.pem"}, "/nonexistent.pem"),
])  # fmt: skip
def test_serve_says_what_cannot_work(arguments: list[str], env: dict[str, str], sentence: str) -> None:
    done = ringcast("serve", *arguments, **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_says_that_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ringcast("serve", "--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ringcast: cannot listen on 127.0.0.1 port {port}: Address already in use")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_tells_that_it_is_ready_and_ends_in_good_order(number: signal.Signals) -> None:
    with Running("serve", "--port", "0", "--node", "n1", "--drain", "0", "--drain-wait", "0s") as serving:
        ready, word, url, *rest = serving.line().split()
        assert (ready, word, rest) == ("ringcast", "ready", ["node=n1", "broker=memory"])
        assert ringcast("publish", "topic:a", "1", RINGCAST_URL=url).returncode == 0
        assert serving.end(number) == 0


# the rest


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["listen", "--help"]])
def test_help_is_help(arguments: list[str]) -> None:
    done = ringcast(*arguments, RINGCAST_API_KEY="geheim", RINGCAST_TOKEN="geheim")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: ringcast" in done.stdout
    assert "geheim" not in done.stdout


def test_version_is_told_installed_or_not() -> None:
    done = ringcast("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ringcast")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_reader_of_its_output_may_go(gateway: Gateway, flags: tuple[str, ...]) -> None:
    news = topic()
    gateway.publish(news, 1)
    with Running("listen", news, "--since", "earliest", *flags, **client(gateway)) as listening:
        listening.line()
        listening.close_stdout()
        gateway.publish(news, 2)
        assert listening.end() == 1
        assert "Broken" not in listening.said["err"]


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_without_the_whole_installation_it_says_what_to_install(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from gateway.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment({}), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ringcast: this needs more than the base install: pip install 'ringcast[gateway]'\n"


def test_the_base_install_is_enough_for_publisher_and_subscriber() -> None:
    absent = ["starlette", "uvicorn", "pydantic", "pydantic_settings", "jwt", "sse_starlette", "typer", "rich"]
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import publisher.testing, gateway.client"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment({}), check=False)
    assert done.returncode == 0
