"""`publisher.tasks`: whose a task is, and that what cannot be told is not in the task's way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from publisher.jobs import JobReporter
from publisher.tasks import Tasks


@pytest.fixture
def reporter() -> Iterator[JobReporter]:
    reporter = JobReporter("http://127.0.0.1:9", "key", exit_wait=0)
    yield reporter
    reporter.close(0)


def by_argument(name: str, args: Any, kwargs: Any) -> str | None:
    return kwargs["user"] if name != "broken" else str(1 / 0)


def test_a_message_knows_its_user_better_than_its_arguments_and_these_better_than_who_sends(
    reporter: JobReporter,
) -> None:
    tasks = Tasks(reporter, lambda name, args, kwargs: kwargs.get("user"), None)
    said = {"ringcast_user": "said", "ringcast_weight": 2, "other": 1}
    with reporter.job(user="sender"):
        assert tasks.about("t", (), {"user": "argument"}, said) == {"ringcast_user": "said", "ringcast_weight": 2}
        assert tasks.about("t", (), {"user": "argument"}, {}) == {"ringcast_user": "argument"}
        assert tasks.about("t", (), {}, {}) == {"ringcast_user": "sender"}
    assert tasks.about("t", (), {}, {}) == {}


def test_a_function_of_the_applications_that_fails_is_logged_and_fails_nothing(
    reporter: JobReporter, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = Tasks(reporter, by_argument, None)
    assert tasks.about("broken", (), {}, {}) == {}
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("about", [{"ringcast_user": "job.a"}, {"ringcast_user": 7}, {"ringcast_weight": "heavy"}])
def test_what_cannot_be_a_job_is_logged_and_says_nothing(
    reporter: JobReporter, about: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = Tasks(reporter, None, None).job("id", "render", about)
    with job:
        pass
    assert "render id is not told of" in caplog.text
    assert job.settle()


def test_only_the_tasks_that_are_named_are_told_of(reporter: JobReporter) -> None:
    tasks = Tasks(reporter, None, {"render"})
    assert tasks.told("render")
    assert not tasks.told("sweep")
