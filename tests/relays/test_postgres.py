"""`ringcast relay postgres`, the command, between a real PostgreSQL and a real gateway."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.message import new_id
from tests.support.command import Running, ringcast
from tests.support.gateway import ROOT, Gateway, free_port
from tests.support.keys import API_KEY
from tests.support.outbox import drained, history, waiting
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy


@pytest.fixture(scope="module")
def gateway_settings() -> dict[str, Any]:
    return {"toml": "[channels.room]\nkeyed = true\n"}


@pytest.fixture
def app(postgres: PostgresServer) -> Iterator[psycopg.Connection]:
    """The application's connection; the tables are empty again at the end."""
    with psycopg.connect(postgres.url) as connection:
        connection.autocommit = True
        yield connection
        connection.execute("TRUNCATE ringcast_outbox, ringcast_outbox_refused")


def environment(postgres: PostgresServer, url: str) -> dict[str, str]:
    return {"RINGCAST_URL": url, "RINGCAST_API_KEY": API_KEY, "RINGCAST_RELAY_POSTGRES": postgres.url}


def relay(postgres: PostgresServer, url: str, *options: str) -> Running:
    running = Running("relay", "postgres", *options, **environment(postgres, url))
    assert running.line() == "ringcast relay ready"
    return running


def topic() -> str:
    return f"topic:{new_id().lower()}"


def data(gateway: Gateway, channel: str) -> list[Any]:
    return [message["data"] for message in history(gateway, channel)]


def publish(app: psycopg.Connection, channel: str, value: Any, **more: Any) -> int:
    names = "".join(f", {name} => %({name})s" for name in more)
    row = app.execute(
        f"SELECT ringcast_publish(%(channel)s, %(value)s::jsonb{names})",
        {"channel": channel, "value": json.dumps(value), **more},
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_row_is_published_when_its_transaction_commits(
    gateway: Gateway, postgres: PostgresServer, app: psycopg.Connection
) -> None:
    channel = topic()
    with relay(postgres, gateway.url, "--poll", "1h") as running:  # so that only NOTIFY can wake it
        with app.transaction():
            for n in range(3):
                publish(app, channel, {"n": n, "text": "zwölf \U0001f680\n"}, event="order.shipped")
            assert data(gateway, channel) == []
        with app.transaction(force_rollback=True):
            publish(app, channel, "never")
        drained(postgres)
        messages = list(history(gateway, channel))
        assert [message["data"] for message in messages] == [{"n": n, "text": "zwölf \U0001f680\n"} for n in range(3)]
        assert {message["event"] for message in messages} == {"order.shipped"}
        assert running.end(signal.SIGTERM) == 0
    assert "the gateway" not in running.said["err"]


def test_every_argument_of_the_function_arrives(
    gateway: Gateway, postgres: PostgresServer, app: psycopg.Connection
) -> None:
    room = f"room:{new_id().lower()}"
    publish(app, room, 1, key="ann", version=[1, 2], ttl="1 hour", id="first")
    publish(app, room, None, key="bob")
    publish(app, room, None, key="bob", deleted=True)
    publish(app, room, 2, key="ann", id="first")
    with relay(postgres, gateway.url):
        drained(postgres)
    told = [{name: message.get(name) for name in ("data", "key", "version", "deleted")}
            for message in history(gateway, room)]  # fmt: skip
    assert told == [
        {"data": 1, "key": "ann", "version": [1, 2], "deleted": None},
        {"data": None, "key": "bob", "version": None, "deleted": None},
        {"data": None, "key": "bob", "version": None, "deleted": True},
    ]
    assert next(history(gateway, room))["id"] == "first"
    assert app.execute("SELECT code, data FROM ringcast_outbox_refused").fetchall() == [("id_reused", 2)]


@pytest.mark.parametrize("call", [
    "ringcast_publish('nowhere', '1')", "ringcast_publish('topic:a b', '1')", "ringcast_publish('topic:a', '{')",
    "ringcast_publish('topic:a', '1', event => '')", "ringcast_publish('topic:a', '1', ttl => '-1 s')",
    "ringcast_publish('topic:a', to_jsonb(repeat('x', 600000)))", r"ringcast_publish('topic:a', '\"\ud800\"')",
])  # fmt: skip
def test_what_can_never_be_published_fails_in_the_application_s_own_transaction(
    app: psycopg.Connection, call: str
) -> None:
    with pytest.raises((psycopg.DataError, psycopg.IntegrityError)):
        app.execute(f"SELECT {call}".encode())


def test_a_refused_row_is_set_aside_and_the_rest_of_its_channel_goes_on(
    gateway: Gateway, postgres: PostgresServer, app: psycopg.Connection
) -> None:
    channel = topic()
    with app.transaction():
        publish(app, channel, 1)
        number = publish(app, channel, 2, key="not in a keyed namespace")
        publish(app, channel, 3)
        publish(app, "jobs:1", 4)
        publish(app, channel, "x" * 70_000)
    with relay(postgres, gateway.url) as running:
        drained(postgres)
        assert running.end(signal.SIGTERM) == 0
    assert data(gateway, channel) == [1, 3]
    rows = app.execute("SELECT code, reason FROM ringcast_outbox_refused ORDER BY id").fetchall()
    assert [code for code, _ in rows] == ["key_not_allowed", "reserved_channel", "too_large"]
    assert f"row {number} of '{channel}' is set aside, refused (key_not_allowed): " in running.said["err"]
    assert rows[0][1] in running.said["err"]


def test_the_page_s_statement_sends_a_refused_row_again(
    gateway: Gateway, postgres: PostgresServer, app: psycopg.Connection
) -> None:
    channel = topic()
    number = publish(app, channel, 1, key="k")
    with relay(postgres, gateway.url):
        drained(postgres)
        app.execute("UPDATE ringcast_outbox_refused SET key = NULL")  # what was wrong with it is mended
        [statement] = re.findall(r"```sql again\n(.*?)```", (ROOT / "docs" / "relays.md").read_text(), re.S)
        app.execute(statement.replace("<id>", str(number)).encode())
        drained(postgres)
    assert data(gateway, channel) == [1]
    assert app.execute("SELECT FROM ringcast_outbox_refused").fetchall() == []


def test_rows_wait_for_a_gateway_that_is_away_or_refuses_the_relay(
    postgres: PostgresServer, app: psycopg.Connection
) -> None:
    channel = topic()
    publish(app, channel, 1)
    env = environment(postgres, url=f"http://127.0.0.1:{(port := free_port())}")
    with Running("relay", "postgres", **env) as running:
        running.until("the gateway: ")
        with Gateway(port=port, api_keys="another-key") as gateway:
            assert "trying again" in running.until("HTTP 401")
            assert waiting(postgres) == 1
            assert gateway.stop() == 0
        with Gateway(port=port) as gateway:
            drained(postgres)
            running.until("the gateway: works again")
            assert data(gateway, channel) == [1]
    assert API_KEY not in running.said["err"]
    assert app.execute("SELECT FROM ringcast_outbox_refused").fetchall() == []


def test_a_relay_finds_rows_that_nobody_notified_it_of(
    gateway: Gateway, postgres: PostgresServer, app: psycopg.Connection
) -> None:
    channel = topic()
    with relay(postgres, gateway.url, "--poll", "100ms"):
        app.execute("INSERT INTO ringcast_outbox (lane, channel, event, data, deleted, message_id) "
                    "VALUES (0, %s, 'message', '1', false, %s)", [channel, new_id()])  # fmt: skip
        drained(postgres)
    assert data(gateway, channel) == [1]


def test_a_relay_that_is_told_to_stop_leaves_nothing_in_doubt(
    gateway: Gateway, postgres: PostgresServer, app: psycopg.Connection
) -> None:
    channel = topic()
    app.execute("SELECT ringcast_publish(%s, to_jsonb(n)) FROM generate_series(1, 10000) AS n", [channel])
    with relay(postgres, gateway.url, "--batch", "50") as running:
        while waiting(postgres) == 10_000:
            time.sleep(0.001)
        assert running.end(signal.SIGTERM) == 0
    left = waiting(postgres)
    with gateway.http() as http:
        newest = http.get("/v1/history", params={"channel": channel, "since": "latest"}).json()["offset"]
        told = http.get("/v1/history", params={"channel": channel, "since": newest - 1}).json()["messages"]
    assert 0 < left < 10_000
    assert told[-1]["data"] == 10_000 - left, "what is stored and what is in the outbox are not the same"
    assert app.execute("SELECT FROM ringcast_outbox_lanes WHERE doubt_through IS NOT NULL").fetchall() == []


@pytest.mark.parametrize(("window", "copies"), [("1s", 1), ("1h", 2)])
async def test_rows_in_doubt_for_longer_than_the_window_are_looked_up_in_the_log(
    postgres: PostgresServer, app: psycopg.Connection, window: str, copies: int
) -> None:
    """With a relay that believes in a longer window than the gateway has, they are stored twice."""
    channel = topic()
    async with Gateway(idempotency_window="1s", ticket_ttl="1s") as gateway, Proxy(gateway.port) as proxy:
        proxy.buffer("/v1/publish")
        with relay(postgres, proxy.url) as running:
            with app.transaction():
                for n in range(3):
                    publish(app, channel, n)
            await gateway.until(lambda: len(data(gateway, channel)) == 3, within=30, said="stored, but never answered")
            running.kill()
        with app.transaction():
            publish(app, channel, "new")
        proxy.heal("/v1/publish")
        time.sleep(1.2)  # the window passes  # noqa: ASYNC251 - and nothing else is to happen
        with relay(postgres, proxy.url, "--window", window) as running:
            await gateway.until(lambda: waiting(postgres) == 0, within=30)
            assert running.end(signal.SIGTERM) == 0
        told = data(gateway, channel)
        assert ("3 of them are in their channels' logs" in running.said["err"]) == (copies == 1)
    assert told == [0, 1, 2, *([0, 1, 2] if copies == 2 else []), "new"]


def test_a_large_backlog_is_carried_in_little_memory(
    gateway: Gateway, postgres: PostgresServer, app: psycopg.Connection
) -> None:
    channel = topic()
    with relay(postgres, gateway.url) as running:
        publish(app, channel, "x" * 60_000)
        drained(postgres)
        before = peak(running)
        app.execute("SELECT ringcast_publish(%s || n %% 20, to_jsonb(repeat('x', 60000))) "
                    "FROM generate_series(1, 600) AS n", [channel])  # fmt: skip
        drained(postgres)
        assert peak(running) - before < 16 << 20, "36 MB went through"


def peak(running: Running) -> int:
    lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_operators_see_what_is_done_and_what_waits(
    gateway: Gateway, postgres: PostgresServer, app: psycopg.Connection
) -> None:
    port = free_port()
    with relay(postgres, gateway.url, "--report", "100ms", "--poll", "50ms", "--metrics", str(port)) as running:
        publish(app, topic(), 1)
        publish(app, "jobs:1", 1)
        running.until("delivered 1 (0 of them stored before, 0 found in the log), refused 1, waiting 0")
        taken = ringcast("relay", "postgres", "--metrics", str(port), **environment(postgres, gateway.url))
        assert (taken.returncode, taken.stderr) == (2, f"ringcast: --metrics {port}: Address already in use.\n")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            told = answer.read().decode()
    for line in (
        "ringcast_relay_delivered_total 1.0", 'ringcast_relay_refused_total{code="reserved_channel"} 1.0',
        "ringcast_relay_waiting 0.0", "ringcast_relay_oldest_seconds 0.0",
    ):  # fmt: skip
        assert line in told.splitlines()


def test_a_role_needs_no_more_than_what_the_migration_grants(
    gateway: Gateway, postgres: PostgresServer, app: psycopg.Connection
) -> None:
    sql = ringcast("relay", "postgres", "--sql").stdout
    for role in ("app", "relay"):
        app.execute(f"CREATE ROLE the_{role} LOGIN".encode())
    for grant in re.findall(r"GRANT .*? TO \w+;", sql):
        app.execute(re.sub(r" TO (\w+)", r" TO the_\1", grant).encode())
    channel = topic()
    with psycopg.connect(postgres.url.replace("//app@", "//the_app@"), autocommit=True) as theirs:
        publish(theirs, channel, 1)
        publish(theirs, "jobs:1", 2)
    env = environment(postgres, gateway.url)
    env["RINGCAST_RELAY_POSTGRES"] = postgres.url.replace("//app@", "//the_relay@")
    with Running("relay", "postgres", **env):
        drained(postgres)
    assert data(gateway, channel) == [1]


@pytest.mark.parametrize(("options", "env", "code", "sentence"), [
    (["--window", "soon"], {}, 2, "--window is a duration"),
    (["--metrics", "here"], {}, 2, "--metrics is a port"),
    (["--url", "localhost"], {}, 2, "the gateway's URL must look like"),
    ([], {"RINGCAST_RELAY_POSTGRES": "postgres//app:hunter2@db/shop"}, 2, "is no connection string"),
])  # fmt: skip
def test_the_command_says_what_is_wrong(
    postgres: PostgresServer, options: list[str], env: dict[str, str], code: int, sentence: str
) -> None:
    done = ringcast("relay", "postgres", *options, **(environment(postgres, "http://127.0.0.1:9") | env))
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "hunter2" not in done.stderr


def test_a_database_without_an_outbox_is_told_so(postgres: PostgresServer, app: psycopg.Connection) -> None:
    app.execute("CREATE DATABASE another")
    env = environment(postgres, "http://127.0.0.1:9")
    env["RINGCAST_RELAY_POSTGRES"] = postgres.url.rpartition("/")[0] + "/another"
    done = ringcast("relay", "postgres", **env)
    assert done.returncode == 1
    assert "`ringcast relay postgres --sql | psql` makes one" in done.stderr
