from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from tests.support.deployments import Deployment, Memory, RedisAlone, RedisClustered, RedisWatched
from tests.support.nats import NatsAlone, NatsCluster, NatsInMemory

D = TypeVar("D", bound=Deployment)

STORES = [
    pytest.param(Memory, id="memory"),
    pytest.param(RedisAlone, id="redis"),
    pytest.param(RedisClustered, id="redis-cluster", marks=pytest.mark.chaos),
    pytest.param(RedisWatched, id="redis-sentinel", marks=pytest.mark.chaos),
    pytest.param(NatsAlone, id="nats"),
    pytest.param(NatsCluster, id="nats-cluster", marks=pytest.mark.chaos),
]


@asynccontextmanager
async def opened(deployment: D) -> AsyncIterator[D]:
    await deployment.open()
    try:
        yield deployment
    finally:
        await deployment.close()


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    """A deployment of each kind, with nothing in it."""
    deployment: Deployment = request.param()
    async with opened(deployment):
        yield deployment


@pytest.fixture(params=STORES[1:])
async def remote(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    """A deployment that is reached over connections."""
    deployment: Deployment = request.param()
    async with opened(deployment):
        yield deployment


@pytest.fixture
async def alone() -> AsyncIterator[NatsAlone]:
    async with opened(NatsAlone()) as deployment:
        yield deployment


@pytest.fixture
async def in_memory() -> AsyncIterator[NatsInMemory]:
    async with opened(NatsInMemory()) as deployment:
        yield deployment


@pytest.fixture
async def cluster() -> AsyncIterator[NatsCluster]:
    async with opened(NatsCluster()) as deployment:
        yield deployment
