"""The plain HS256 token, which nearly every token is, at a thirtieth of what a JWT library takes for it.

Nothing is accepted here that a library would refuse, and nothing is refused here at all: what is not the plain case, a
wrong signature included, is for the library to judge. So one attack table holds for both.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from typing import Any

import msgspec

from gateway.message import base64url, from_base64url

_decode_header = msgspec.json.Decoder(dict[str, str]).decode
_decode_claims = msgspec.json.Decoder(dict[str, Any]).decode
_JUDGED = frozenset(("aud", "nbf", "jti", "crit"))  # claims that the library has rules for
_MAX_HEADER = 200  # bytes


class Secret:
    """A key of HMAC-SHA-256."""

    def __init__(self, key: bytes) -> None:
        self._mac = hmac.new(key, digestmod=hashlib.sha256)  # of nothing yet: each token's begins with a copy

    def claims_of(self, token: str, latest: float) -> dict[str, Any] | None:
        """The claims of a token of JWS compact serialization (RFC 7515, 7.1) that this key signed.

        None where it is not the plain case: another header, claims with rules of their own, an `iat` above `latest`.
        """
        signed, _, signature = token.encode().rpartition(b".")
        header, _, payload = signed.partition(b".")
        if len(header) > _MAX_HEADER or not _is_plain(header):
            return None
        mac = self._mac.copy()
        mac.update(signed)
        # As text, so that the spare bits of the last character do not give one token several spellings.
        if not hmac.compare_digest(base64url(mac.digest()), signature):
            return None
        try:
            raw = from_base64url(payload, strict=False)
            claims = _decode_claims(raw)
        except (ValueError, msgspec.DecodeError, RecursionError):
            return None
        issued = claims.get("iat", 0)
        if base64url(raw) != payload or not _JUDGED.isdisjoint(claims):
            return None
        return claims if type(issued) in (int, float) and issued <= latest else None


@lru_cache(maxsize=64)
def _is_plain(header: bytes) -> bool:
    """Whether a token's header is `{"alg":"HS256"}`, perhaps with `typ` and `kid`. An issuer's tokens have the same."""
    try:
        raw = from_base64url(header, strict=False)
        found = _decode_header(raw)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return False
    return found.get("alg") == "HS256" and found.keys() <= {"alg", "typ", "kid"} and base64url(raw) == header
