"""Knocking at an Authenticator, without a gateway around it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.auth import Authenticator, Credentials
from gateway.errors import Problem
from gateway.identity import Identity
from gateway.settings import Settings
from tests.support.forge import KEY, SECRET

HERE = "192.0.2.1"


def authenticator(**settings: Any) -> Authenticator:
    defaults: dict[str, Any] = {"api_keys": [KEY], "jwt_hmac_key": SECRET, "failed_logins": 1_000_000}
    return Authenticator(Settings(**(defaults | settings)))


async def login(auth: Authenticator, token: str, **rest: Any) -> Identity | None:
    return await auth.authenticate(Credentials(HERE, authorization=f"Bearer {token}", **rest))


async def refusal(auth: Authenticator, bearer: str | None = None, **rest: Any) -> Problem:
    with pytest.raises(Problem) as refused:
        await auth.authenticate(Credentials(HERE, authorization=bearer and f"Bearer {bearer}", **rest))
    return refused.value
