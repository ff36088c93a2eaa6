"""The demo beside a gateway that runs elsewhere: `uvicorn --factory client_demo.served:app`.

    RINGCAST_URL, RINGCAST_API_KEY    where the backend publishes, and its key
    RINGCAST_JWT_HMAC_KEY             what it signs its users' tokens with
    DEMO_GATEWAY                      the gateway as browsers reach it
    DEMO_QUEUE                        where jobs wait for `celery --app client_demo.worker worker`
"""

from __future__ import annotations

import os

from starlette.applications import Starlette

from client_demo.backend import Config, create_app


def app() -> Starlette:
    """The demo of this process' environment. Raises KeyError for what is missing there."""
    here = os.environ
    return create_app(Config(
        gateway=here["RINGCAST_URL"], public_gateway=here["DEMO_GATEWAY"], hmac_key=here["RINGCAST_JWT_HMAC_KEY"],
        api_key=here["RINGCAST_API_KEY"], queue=here["DEMO_QUEUE"],
    ))  # fmt: skip
