"""A PostgreSQL server with an outbox, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from publisher.outbox import MIGRATION
from tests.support.postgres import PostgresServer


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        with server.connect() as connection:
            connection.execute(MIGRATION.encode())
        yield server
