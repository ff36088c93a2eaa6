"""An application that publishes through its outbox, and a ledger of what it committed."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg

from tests.support.gateway import Gateway
from tests.support.postgres import PostgresServer

CHANNELS = [f"topic:outbox-{n}" for n in range(40)]
ROWS = 20  # that a transaction publishes at most


class Writers:
    """Threads that each publish in transactions of their own, one after another; every fifth is rolled back.

    What they publish is written into the table `ledger` in the same transaction: after a crash it alone tells whether a
    commit, whose answer never came, took place.
    """

    def __init__(self, server: PostgresServer, rows: int, writers: int = 4) -> None:
        self.server = server
        self.rows = rows
        self.written = 0  # rows that were committed, or may have been
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(writers)]
        with server.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS ledger")  # of the test before
            connection.execute(
                "CREATE TABLE ledger (channel text, writer int, n int, PRIMARY KEY (channel, writer, n))"
            )

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.rows = 0
        for thread in self._threads:
            thread.join()

    def until(self, share: float) -> None:
        """Wait until they wrote this share of all."""
        total, deadline = self.rows, time.monotonic() + 600
        while self.written < share * total:
            assert not self.failures, self.failures
            assert time.monotonic() < deadline, f"{self.written} of {total} rows written"
            time.sleep(0.01)

    def _write(self, writer: int) -> None:
        chance = random.Random(writer)
        n = 0
        try:
            while self.written < self.rows:
                try:
                    with psycopg.connect(self.server.url, connect_timeout=10) as connection:
                        while self.written < self.rows:
                            n = self._transaction(connection, writer, n, chance)
                except psycopg.OperationalError:
                    n += ROWS  # whether the last transaction took place, only the ledger knows
                    time.sleep(0.05)
        except BaseException as error:
            self.failures.append(error)

    def _transaction(self, connection: psycopg.Connection, writer: int, n: int, chance: random.Random) -> int:
        rows = [(chance.choice(CHANNELS), writer, n + i) for i in range(chance.randint(1, ROWS))]
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO ledger VALUES (%s, %s, %s)", rows)
            cursor.executemany("SELECT ringcast_publish(%s, jsonb_build_object('writer', %s::int, 'n', %s::int))", rows)
        if chance.random() < 0.2:
            connection.rollback()
        else:
            connection.commit()
            with self._lock:
                self.written += len(rows)
        return n + len(rows)


def committed(server: PostgresServer) -> dict[str, set[tuple[int, int]]]:
    """What was published, by channel: writer and number."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    with server.connect() as connection:
        for channel, writer, n in connection.execute("SELECT channel, writer, n FROM ledger"):
            found[channel].add((writer, n))
    return found


def waiting(server: PostgresServer) -> int:
    """Rows that are in the outbox."""
    with server.connect() as connection:
        [count] = connection.execute("SELECT count(*) FROM ringcast_outbox").fetchone() or [0]
    return int(count)


def drained(server: PostgresServer, within: float = 60) -> None:
    """Wait until the outbox is empty."""
    deadline = time.monotonic() + within
    while (rows := waiting(server)) > 0:
        assert time.monotonic() < deadline, f"{rows} rows still wait after {within:g} s"
        time.sleep(0.02)


def history(gateway: Gateway, channel: str) -> Iterator[dict[str, Any]]:
    """All that the channel's log holds, in its order."""
    with gateway.http() as http:
        position: str | int = "earliest"
        while True:
            answer: httpx.Response = http.get("/v1/history", params={"channel": channel, "since": position})
            page = json.loads(answer.raise_for_status().content)
            yield from page["messages"]
            if not page["more"]:
                return
            position = page["offset"]


def check(server: PostgresServer, gateway: Gateway) -> int:
    """Every committed row was delivered once, none of another transaction, each writer's in its order; how many."""
    truth = committed(server)
    for channel in CHANNELS:
        told = [(message["data"]["writer"], message["data"]["n"]) for message in history(gateway, channel)]
        assert len(told) == len(set(told)), f"{channel} has {len(told) - len(set(told))} duplicates"
        missing, uncalled = truth[channel] - set(told), set(told) - truth[channel]
        assert not missing, f"{channel} misses {len(missing)} rows, such as {min(missing)}"
        assert not uncalled, f"{channel} has {len(uncalled)} rows that nobody committed, such as {min(uncalled)}"
        for writer in {writer for writer, _ in told}:
            numbers = [n for by, n in told if by == writer]
            assert numbers == sorted(numbers), f"{channel} has the rows of writer {writer} in another order"
    return sum(map(len, truth.values()))
