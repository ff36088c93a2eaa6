"""What the gateway logs on stderr: lines for people, or a JSON object a line; what could be a secret is not in them.

Libraries speak of trouble only: at INFO they write query strings, which may hold a ticket, and at DEBUG whole
handshakes with their tokens. What is left of those in what somebody quotes is struck out here.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from urllib.parse import urlsplit

import msgspec

from gateway.settings import Settings

# What a record may say beside its message, by `extra`; docs/observability.md tells what each is.
FIELDS = ("session", "transport", "code", "reason", "method", "path", "status", "seconds", "address")

_HIDDEN = "(hidden)"
_SECRET = re.compile(
    r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"  # a JWT
    r"|\brct1\.[\w.-]+"  # a ticket
    r"|(?<=[?&]token=)[^\s&\"']+|(?<=[?&]ticket=)[^\s&\"']+"
    r"|(?<=bearer )[^\s,;\"'`]+|(?<=bearer\.)[^\s,;\"'`]+"
    r"|(?<=://)[^\s/@]+(?=@)",  # who logs in by a URL
    re.IGNORECASE,
)
_SHORTEST = 8  # characters of a configured secret that is looked for: a shorter one is part of many a word


def write(settings: Settings) -> None:
    """Have this process log as its settings say."""
    formatter = Json(settings) if settings.log_format == "json" else Text(settings)
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(settings.log_format == "json")
    logging.getLogger("ringcast").setLevel(settings.log_level.upper())


class Text(logging.Formatter):
    def __init__(self, settings: Settings) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.hide = Hide(settings)

    def format(self, record: logging.LogRecord) -> str:
        return self.hide(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        beside = (f"{name}={value}" for name, value in _fields(record).items())
        return " ".join([super().formatMessage(record), *beside])


class Json(logging.Formatter):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.node = settings.node
        self.hide = Hide(settings)

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {
            "time": time.replace("+00:00", "Z"), "level": record.levelname.lower(), "logger": record.name,
            "message": self.hide(record.getMessage()), "node": self.node, **_fields(record),
        }  # fmt: skip
        if record.exc_info:
            said["exception"] = self.hide(self.formatException(record.exc_info))
        return msgspec.json.encode(said).decode()


class Hide:
    """Strikes out what looks like a token, a ticket or a password, and the secrets of the settings wherever."""

    def __init__(self, settings: Settings) -> None:
        known = [key for key in settings.api_keys if not key.startswith("sha256:")]
        known += [secret for secret in (settings.jwt_hmac_key, urlsplit(settings.broker).password) if secret]
        words = [re.escape(secret) for secret in known if len(secret) >= _SHORTEST]
        self._known = re.compile("|".join(words)) if words else None

    def __call__(self, text: str) -> str:
        text = _SECRET.sub(_HIDDEN, text)
        return text if self._known is None else self._known.sub(_HIDDEN, text)


def _fields(record: logging.LogRecord) -> dict[str, str | int | float]:
    return {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
