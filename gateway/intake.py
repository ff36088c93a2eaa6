"""POST /v1/publish as an ASGI application of its own: what is published a message at a time passes nothing else."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import cloudevents
from gateway.errors import Problem
from gateway.head import Head
from gateway.http import JSON, NDJSON, arrived, encode, flag, media_type, of_head, problem_response
from gateway.identity import Identity
from gateway.ndjson import Ingest
from gateway.node import Node
from gateway.publish import body_limit, check_id, parse
from gateway.results import publish_each, publish_items

PATH = "/v1/publish"


class Intake:
    """Takes one publish, lines of them, or CloudEvents; answers with a result for each target, or with a problem."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._limit = body_limit(node.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        node = self._node
        try:
            head = Head.of(scope)
            identity = await of_head(head, node.auth)
            kind = media_type(head.fields)
            given = None
            if "idempotency-key" in head.fields:
                given = check_id(Headers(scope=scope).getlist("idempotency-key"))
            if kind == NDJSON:
                ingest = self._ingest(head, identity, given)
            else:
                results = await self._results(head, receive, identity, kind, given)
        except Problem as problem:
            node.metrics.refusals[problem.code] += 1
            await problem_response(problem)(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is there to be told anything
        else:
            if kind == NDJSON:
                await ingest(scope, receive, send)
            else:
                await _answer(send, encode({"results": results}))

    def _ingest(self, head: Head, identity: Identity, given: str | None) -> Ingest:
        if given is not None:
            raise Problem("bad_request", "Idempotency-Key is for a single publish: give each line an id of its own")
        return Ingest(self._node, identity, ordered=flag(head.query, "ordered"))

    async def _results(
        self, head: Head, receive: Receive, identity: Identity, kind: str, given: str | None
    ) -> list[Any]:
        """What became of each target of a body that is one piece. Raises Problem."""
        node, fields = self._node, head.fields
        binary = cloudevents.is_binary(fields)
        if kind in (cloudevents.STRUCTURED, cloudevents.BATCHED) or binary:
            if given is not None:
                raise Problem("bad_request", "A CloudEvent's source and id are what an Idempotency-Key would be")
        elif kind != JSON:
            raise Problem("unsupported_media_type", f"Send a publish as {JSON}, one on each line as {NDJSON}, or "
                          f"CloudEvents as {cloudevents.STRUCTURED} or {cloudevents.BATCHED}")  # fmt: skip
        body = await arrived(receive, fields.get("content-length", ""), self._limit, node.settings.stuck_after)
        principal = identity.principal
        if kind == cloudevents.BATCHED:
            return await publish_each(node, identity, cloudevents.parse_batch(body, node.settings, principal))
        if kind == cloudevents.STRUCTURED:
            items = cloudevents.parse_structured(body, node.settings, principal)
        elif binary:
            named = kind if "content-type" in fields else None
            items = cloudevents.parse_binary(fields, named, body, node.settings, principal)
        else:
            items = parse(body, node.settings, principal, given)
        return await publish_items(node, identity, items)


class Ahead:
    """Middleware in front of all other: what is published goes to the intake at once.

    What a page of another origin publishes takes the long way, by the middleware that answers for CORS.
    """

    def __init__(self, app: ASGIApp, intake: Intake) -> None:
        self._app, self._intake = app, intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST"
            and not any(name == b"origin" for name, _ in scope["headers"])
        ):  # fmt: skip
            await self._intake(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def _answer(send: Send, body: bytes) -> None:
    """A 200 of JSON that no cache keeps; without a response object, since one is made of every publish."""
    headers = [
        (b"cache-control", b"no-store"), (b"content-length", b"%d" % len(body)), (b"content-type", b"application/json"),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
