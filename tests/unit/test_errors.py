"""The table of refusals: each can be told over HTTP and over a socket, and says whether to come back."""

from __future__ import annotations

import json
import re

import pytest

from gateway.errors import KINDS, Problem, reconnects


@pytest.mark.parametrize("code", KINDS)
def test_every_refusal_has_a_status_a_close_code_and_a_title(code: str) -> None:
    kind = KINDS[code]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
    assert 400 <= kind.status <= 599
    assert 4000 <= kind.close <= 4299
    assert kind.title[0].isupper()
    assert not kind.title.endswith(".")


@pytest.mark.parametrize("code", KINDS)
def test_what_the_server_may_recover_from_is_worth_coming_back_for(code: str) -> None:
    kind = KINDS[code]
    assert reconnects(kind.close) == (kind.status in (429, 500, 503) or code == "token_expired")


def test_a_close_code_tells_whether_to_come_back() -> None:
    assert not reconnects(4001)
    assert not reconnects(4099)
    assert reconnects(4100)
    assert reconnects(4200)
    assert reconnects(1006)  # a cut names no reason


def test_a_problem_is_told_as_problem_details_with_its_facts() -> None:
    problem = Problem("too_large", "The message is above 64 KiB.", retry_after=1.5, limit=65536)
    assert problem.as_json() == {
        "type": "about:blank", "title": "Too large", "status": 413, "code": "too_large",
        "detail": "The message is above 64 KiB.", "limit": 65536, "retry_after": 1.5,
    }  # fmt: skip
    assert json.loads(json.dumps(problem.as_json())) == problem.as_json()
    assert str(problem) == problem.detail
    assert problem.retry_after == 1.5
