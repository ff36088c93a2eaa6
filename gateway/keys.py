"""The keys that tokens are checked with. The key alone fixes the algorithm; a token's header never chooses it."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gateway.settings import ConfigError

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
MIN_RSA_KEY = 2048  # bits (RFC 7518, 3.3)


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the one algorithm it is used with; `kid` is only ever compared."""

    algorithm: str
    material: PublicKey | bytes = field(repr=False)
    kid: str | None = None


def hmac_key(secret: str) -> Key:
    """The HS256 key of `jwt_hmac_key`. Raises ConfigError when it is no secret."""
    material = secret.encode()
    try:
        jwt.get_algorithm_by_name("HS256").prepare_key(material)
    except jwt.InvalidKeyError as error:
        # Whoever knows a public key could sign with it, were it taken as the shared secret.
        raise ConfigError("jwt_hmac_key is a public key or certificate: set it as jwt_public_key") from error
    return Key("HS256", material)


def public_key(setting: str) -> Key:
    """The key of `jwt_public_key`: PEM text, or the path of a PEM file. Raises ConfigError with a sentence."""
    pem = setting
    if "-----BEGIN" not in setting:
        try:
            pem = Path(setting).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise ConfigError(f"jwt_public_key is neither PEM text nor a PEM file that can be read: {error}") from error
    if "PRIVATE KEY-----" in pem:
        raise ConfigError("jwt_public_key holds a private key: keep that where tokens are made, and set its public key")
    try:
        material = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("jwt_public_key is not a PEM public key (`-----BEGIN PUBLIC KEY-----`)") from error
    key = _fixed(material)
    if key is None:
        raise ConfigError(
            f"jwt_public_key must be an RSA key of {MIN_RSA_KEY} bits or more (RS256), a P-256 key (ES256) or an "
            "Ed25519 key (EdDSA)"
        )
    return key


def json_web_key(jwk: Any) -> Key | None:
    """The key of a member of a JWK set (RFC 7517); None for one that is not for checking tokens here.

    That is a symmetric or a private key, which nobody should publish, one for encryption, and one whose `alg` is
    not what its type is used with.
    """
    if not isinstance(jwk, dict) or jwk.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    kid, operations = jwk.get("kid"), jwk.get("key_ops", ["verify"])
    if not isinstance(kid, str | None) or jwk.get("use", "sig") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        material = jwt.PyJWK({name: value for name, value in jwk.items() if name != "alg"}).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    key = _fixed(material, kid)
    # RFC 9864 calls EdDSA with this curve Ed25519; the tokens are the same.
    stated = "EdDSA" if jwk.get("alg") == "Ed25519" else jwk.get("alg")
    return key if key is not None and stated in (None, key.algorithm) else None


def _fixed(material: object, kid: str | None = None) -> Key | None:
    """`material` with the algorithm its type fixes; None when it is of no type, curve or size that is taken."""
    if isinstance(material, RSAPublicKey) and material.key_size >= MIN_RSA_KEY:
        return Key("RS256", material, kid)
    if isinstance(material, EllipticCurvePublicKey) and isinstance(material.curve, SECP256R1):
        return Key("ES256", material, kid)
    if isinstance(material, Ed25519PublicKey):
        return Key("EdDSA", material, kid)
    return None


class ApiKeys:
    """The backends' keys, held as SHA-256 digests only."""

    def __init__(self, settings: list[str]) -> None:
        """Take the keys, or `sha256:<hex>` of them, as the settings have checked them."""
        self.digests = [_digest(setting) for setting in settings]

    def find(self, presented: str) -> str | None:
        """The first 8 hex digits of the SHA-256 of the key that `presented` is, or None.

        All keys are compared, without an early exit, so that the time tells nothing about which one came close.
        """
        digest = hashlib.sha256(presented.encode(errors="surrogatepass")).digest()
        found = None
        for known in self.digests:
            if hmac.compare_digest(digest, known):
                found = known
        return None if found is None else found.hex()[:8]


    def holds(self, principal: str) -> bool:
        """Whether one of the keys is that of `key:<what find returned>`."""
        return any(principal == f"key:{known.hex()[:8]}" for known in self.digests)


def _digest(setting: str) -> bytes:
    if setting.startswith("sha256:"):
        return bytes.fromhex(setting.removeprefix("sha256:"))
    return hashlib.sha256(setting.encode()).digest()
