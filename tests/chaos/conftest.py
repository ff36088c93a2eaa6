from __future__ import annotations

import pytest

from tests.chaos.fleet import FULL, SHORT, Size


@pytest.fixture(params=[pytest.param(SHORT, id="short"), pytest.param(FULL, id="full", marks=pytest.mark.chaos)])
def size(request: pytest.FixtureRequest) -> Size:
    """Seconds for `make test`, a minute each for `make chaos`."""
    size: Size = request.param
    return size
