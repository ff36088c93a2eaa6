from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.deployments import Deployment, Memory, RedisAlone, RedisClustered, RedisWatched

STORES = [
    pytest.param(Memory, id="memory"),
    pytest.param(RedisAlone, id="redis"),
    pytest.param(RedisClustered, id="redis-cluster", marks=pytest.mark.chaos),
    pytest.param(RedisWatched, id="redis-sentinel", marks=pytest.mark.chaos),
]


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    """A deployment of each kind, with nothing in it."""
    deployment: Deployment = request.param()
    await deployment.open()
    try:
        yield deployment
    finally:
        await deployment.close()
