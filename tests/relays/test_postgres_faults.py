"""The outbox through SIGKILLs of everything: what was committed arrives, once and in order, and nothing else does."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.command import Running
from tests.support.gateway import Gateway
from tests.support.keys import API_KEY
from tests.support.outbox import Writers, check, drained
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer

RELAYS = 3
STOPPED = 8.0  # seconds
TOML = '[channels.default]\nhistory_size = 100000\nhistory_ttl = "1h"\n'


class Deployment:
    """PostgreSQL, a gateway that survives its death because its store is Redis, and three relays between them."""

    def __init__(self, stack: ExitStack, postgres: PostgresServer) -> None:
        self.postgres = postgres
        self.redis = stack.enter_context(RedisServer("--appendonly", "yes"))
        self.gateway = stack.enter_context(Gateway(broker=self.redis.url, toml=TOML))
        self.env = {
            "RINGCAST_URL": self.gateway.url, "RINGCAST_API_KEY": API_KEY, "RINGCAST_RELAY_POSTGRES": postgres.url,
        }  # fmt: skip
        self._stack = stack
        self.relays = [self._relay() for _ in range(RELAYS)]

    def _relay(self) -> Running:
        return self._stack.enter_context(Running("relay", "postgres", **self.env))

    def kill_relay(self, number: int) -> None:
        self.relays[number].kill()
        self.relays[number] = self._relay()

    def kill_relays(self) -> None:
        for number in range(RELAYS):
            self.kill_relay(number)

    def kill_gateway(self) -> None:
        self.gateway.restart(kill=True)

    def kill_postgres(self) -> None:
        self.postgres.kill()
        self.postgres.start()

    def stop_store(self) -> None:
        """Long enough for the gateway to answer that it cannot store, and then to store what follows."""
        self.redis.pause()
        time.sleep(STOPPED)
        self.redis.resume()


@pytest.fixture
def deployment(postgres: PostgresServer) -> Iterator[Deployment]:
    with ExitStack() as stack:
        yield Deployment(stack, postgres)


def test_what_is_committed_arrives_once_and_in_order_whoever_is_killed(deployment: Deployment) -> None:
    with Writers(deployment.postgres, 4_000) as writers:
        kills = (deployment.kill_gateway, deployment.kill_relays, deployment.kill_postgres, deployment.kill_relays)
        for number, kill in enumerate(kills, 1):
            writers.until(number / 5)
            kill()
        writers.until(1.0)
    drained(deployment.postgres)
    assert check(deployment.postgres, deployment.gateway) >= 4_000


@pytest.mark.chaos
def test_100_000_rows_arrive_once_and_in_order_whoever_is_killed(deployment: Deployment) -> None:
    chance = random.Random(7)
    kills: list[Callable[[], object]] = [
        lambda: deployment.kill_relay(0), lambda: deployment.kill_relay(1), lambda: deployment.kill_relay(2),
        deployment.kill_gateway, deployment.kill_postgres, deployment.stop_store,
    ]  # fmt: skip
    began, killed = time.monotonic(), 0
    with Writers(deployment.postgres, 100_000) as writers:
        while writers.written < 100_000:
            assert not writers.failures, writers.failures
            time.sleep(chance.uniform(0.2, 1.5))
            chance.choice(kills)()
            killed += 1
    drained(deployment.postgres, within=300)
    rows = check(deployment.postgres, deployment.gateway)
    assert rows >= 100_000
    assert killed >= 10
    print(f"{rows} rows in {time.monotonic() - began:.0f} s, {killed} kills")
