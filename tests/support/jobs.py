"""What a gateway says of a job, for tests of reporters."""

from __future__ import annotations

from typing import Any

from publisher.jobs import Job
from tests.support.gateway import Gateway


def state(gateway: Gateway, job: Job) -> dict[str, Any]:
    with gateway.http() as http:
        response = http.get(f"/v1/jobs/{job.id}", params={"user": job.user} if job.user else {})
    response.raise_for_status()
    return dict(response.json()["job"])
