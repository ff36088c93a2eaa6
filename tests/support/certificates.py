"""A certificate for 127.0.0.1 that vouches for itself, made with openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Certificate:
    """Paths of PEM files; the certificate is its own authority."""

    file: str
    key: str

    @classmethod
    def make(cls, folder: Path) -> Self:
        key, certificate = folder / "key.pem", folder / "cert.pem"
        options = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
        openssl = ["openssl", *options.split(), "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(openssl, check=True, capture_output=True)
        return cls(str(certificate), str(key))
