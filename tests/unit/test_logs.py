"""`gateway.logs`: one record as a line for people or as an object, with nothing in it that lets anybody in."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from gateway.logs import FIELDS, Json, Text
from gateway.settings import Settings

KEY, HMAC = "a-key-of-16-chars", "x" * 40
SETTINGS = Settings(node="n1", api_keys=[KEY], jwt_hmac_key=HMAC, broker="redis://me:s3cret-word@127.0.0.1:6379")
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.Xs-1_2"


def record(message: str, *arguments: object, **extra: Any) -> logging.LogRecord:
    logger = logging.getLogger("ringcast.test")
    return logger.makeRecord("ringcast.test", logging.WARNING, "f.py", 1, message, arguments, None, extra=extra)


def test_a_record_is_one_object_on_one_line() -> None:
    line = Json(SETTINGS).format(record("so\n%s", "that \u2028 \"x\"", session="s1", code=4100))
    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "warning", "logger": "ringcast.test", "message": 'so\nthat \u2028 "x"', "node": "n1",
        "session": "s1", "code": 4100,
    }  # fmt: skip


def test_a_line_for_people_ends_with_what_goes_beside_it() -> None:
    line = Text(SETTINGS).format(record("a connection ended", session="s1", code=4100))
    assert line.endswith(" WARNING ringcast.test: a connection ended session=s1 code=4100")


def test_what_failed_comes_with_its_traceback() -> None:
    try:
        raise RuntimeError(f"of {JWT}")
    except RuntimeError as error:
        failed = record("it failed")
        failed.exc_info = (RuntimeError, error, error.__traceback__)
    said = json.loads(Json(SETTINGS).format(failed))
    assert "Traceback" in said["exception"]
    assert "RuntimeError: of (hidden)" in said["exception"]
    failed.exc_text = None
    assert Text(SETTINGS).format(failed).endswith("RuntimeError: of (hidden)")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"a {JWT}, quoted", "a (hidden), quoted"),
        (f"GET /v1/poll?token={JWT}&wait=0", "GET /v1/poll?token=(hidden)&wait=0"),
        ("GET /v1/poll?wait=0&ticket=rct1.abc.def HTTP/1.1", "GET /v1/poll?wait=0&ticket=(hidden) HTTP/1.1"),
        ("GET /v1/poll?token=opaque", "GET /v1/poll?token=(hidden)"),
        ("{'Authorization': 'Bearer opaque'}", "{'Authorization': 'Bearer (hidden)'}"),
        ("offered bearer.opaque, ringcast.v1", "offered bearer.(hidden), ringcast.v1"),
        ("redis://me:pw@127.0.0.1:6379 is away", "redis://(hidden)@127.0.0.1:6379 is away"),
        (f"{KEY}, {HMAC}, s3cret-word", "(hidden), (hidden), (hidden)"),
        ("the ticket was used; a token is missing", "the ticket was used; a token is missing"),
    ],
)
def test_nothing_that_lets_anybody_in_is_left(text: str, left: str) -> None:
    assert json.loads(Json(SETTINGS).format(record("%s", text)))["message"] == left
    assert Text(SETTINGS).format(record("%s", text)).endswith(": " + left)


def test_only_what_is_documented_goes_beside_a_message() -> None:
    said = json.loads(Json(SETTINGS).format(record("x", **dict.fromkeys(FIELDS, "1"), unheard_of=1)))
    assert said.keys() == {"time", "level", "logger", "message", "node", *FIELDS}
