"""The keys of every gateway that the tests start, and tokens made with them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import jwt

API_KEY = "test-api-key-8f1b0c"
HMAC_KEY = "a key of the tests, long enough for HS256"


def token(
    user: str, channels: Iterable[str] = (), publish: Iterable[str] = (), *, expires_in: float = 7200, **claims: Any
) -> str:
    """A token of `user` that may read `channels` and publish to `publish` (patterns) for `expires_in` seconds."""
    now = time.time()
    body = {"sub": user, "channels": list(channels), "publish": list(publish), "iat": now, "exp": now + expires_in}
    return jwt.encode(body | claims, HMAC_KEY, algorithm="HS256")


def bearer(credential: str = API_KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}
