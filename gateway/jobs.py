"""The HTTP interface to jobs: what reporters tell, and what watchers ask for.

A job's channel follows from its id and its user alone (`gateway.job.channel_of`), so whoever asks names the user; a
token's own is understood. There is no table from ids to users: it would be a second record of every job, in another
partition, that could be missing or late.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import job as jobs
from gateway.api import Listing
from gateway.brokers.base import Receipt, Snapshot
from gateway.errors import Problem
from gateway.http import JSON, content_type, identify, json_response, read_body
from gateway.identity import Identity
from gateway.job import Body, State
from gateway.message import Draft, Message, clip, encode_cursor
from gateway.node import Node
from gateway.steward import Steward

BODY = 16 << 10  # bytes of a job event beside its result
TRIES = 4  # of an event that others overtake, or that needs room made


def routes(node: Node, steward: Steward) -> list[Route]:
    async def report(request: Request) -> Response:
        identity = await identify(request, node.auth)
        if not identity.server:
            raise Problem("forbidden", "Only API keys tell of jobs: report from the backend or its workers")
        if content_type(request) != JSON:
            raise Problem("unsupported_media_type", f"Send a job event as {JSON}")
        name = jobs.check_id(request.path_params["id"])
        body = jobs.parse(await read_body(request, node.settings.max_message + BODY, node.settings.stuck_after))
        return json_response(await tell(node, steward, name, body))

    async def state(request: Request) -> Response:
        name, identity = jobs.check_id(request.path_params["id"]), await identify(request, node.auth)
        channels = _channels(request, identity, name)
        identity.check_read(next((each for each in channels if identity.may_read(each)), channels[0]))
        for channel in (each for each in channels if identity.may_read(each)):
            snapshot = await node.broker.snapshot(channel)
            found = _find(snapshot, name)
            if found is not None:
                break
        return _told(request, snapshot, channel, found, name)

    async def listing(request: Request) -> Response:
        identity = await identify(request, node.auth)
        user, parent = request.query_params.get("user", identity.subject), request.query_params.get("parent")
        if user is None and parent is None:
            raise Problem("bad_request", "Whose jobs? Name a user as ?user=, or the job they are parts of as ?parent=")
        channel = jobs.channel_of("", user, parent)
        identity.check_read(channel)
        states = _states(request)
        snapshot = await node.broker.snapshot(channel)
        found = [
            message for message in reversed(snapshot.messages)
            if (not states or _state(message).state in states) and parent in (None, _state(message).parent)
        ]  # fmt: skip
        about = {"channel": channel, "offset": snapshot.offset, "cursor": encode_cursor({channel: snapshot.offset})}
        return Listing(node.settings.stuck_after, about, "jobs", (message.data for message in found))

    async def forget(request: Request) -> Response:
        name, identity = jobs.check_id(request.path_params["id"]), await identify(request, node.auth)
        if not identity.server:
            raise Problem("forbidden", "Only API keys forget jobs: ask the backend to")
        channel = jobs.channel_of(name, request.query_params.get("user"), request.query_params.get("parent"))
        found = _find(await node.broker.snapshot(channel), name)
        if found is None:
            raise Problem("not_found", f"{channel} holds no such job: name its user as ?user=, if it has one")
        receipt = await node.publish(jobs.forgotten(channel, name, _state(found).attempt, node.settings))
        return json_response({"job": name, "channel": channel, "offset": receipt.offset})

    return [
        Route("/v1/jobs", listing, methods=["GET"]),
        Route("/v1/jobs/{id:path}", report, methods=["POST"]),
        Route("/v1/jobs/{id:path}", state, methods=["GET"]),
        Route("/v1/jobs/{id:path}", forget, methods=["DELETE"]),
    ]


async def tell(node: Node, steward: Steward, name: str, body: Body) -> dict[str, Any]:
    """Store what is told of a job, unless something newer is known; answers with what then is its state.

    Without an attempt an event is of the first, and one that ends the job as a whole of the attempt it is at. An end
    without a run, of somebody who did not run the job, keeps what is known of the execution. Raises Problem, those of
    `Broker.publish` among them.
    """
    channel = jobs.channel_of(name, body.user, body.parent)
    current: Message | None = None
    follows = body.attempt is None and jobs.ENDS.get(body.state) == 2
    outside = not body.run and body.state in jobs.ENDS
    for tried in range(TRIES):
        if (follows or outside) and current is None:
            current = _find(await node.broker.snapshot(channel), name)
        known = None if current is None else _state(current)
        attempt = body.attempt if body.attempt is not None else 1
        if follows and known is not None:
            attempt = known.attempt
        state = jobs.state_of(name, body, attempt, time.time_ns() // 1_000_000)
        if outside and known is not None and known.attempt == attempt:
            state = jobs.completed(state, known)
        draft = jobs.draft(channel, state, node.settings)
        await steward.note(channel, state)
        try:
            receipt = await store(node, draft)
        except Problem as problem:
            if problem.code != "stale_version":
                raise
            current = _find(await node.broker.snapshot(channel), name)
            if follows and tried + 1 < TRIES and current is not None and _state(current).attempt > attempt:
                continue  # it went on to its next attempt meanwhile, which is the one that is meant
            offset = int(problem.facts["current"]["offset"]) if current is None else current.offset
            told = None if current is None else msgspec.Raw(current.data)
            return {"job": told, "channel": channel, "offset": offset, "stale": True}
        return {"job": state, "channel": channel, "offset": receipt.offset, "stale": False}
    raise Problem("unavailable", "The job goes on faster than this can be stored: try again", retry_after=1)


async def store(node: Node, draft: Draft) -> Receipt:
    """Publish a job's event; where its channel is full the job that ended first makes room. Raises Problem."""
    for tried in range(TRIES):
        try:
            return await node.publish(draft)
        except Problem as problem:
            if problem.code != "too_many_keys" or tried + 1 == TRIES or not await _make_room(node, draft.channel):
                raise
    raise AssertionError("the last try returned or raised")


async def _make_room(node: Node, channel: str) -> bool:
    """Forget the job of a channel that ended first; False when all of them still go on."""
    for message in (await node.broker.snapshot(channel)).messages:
        state = _state(message)
        if state.state in jobs.FINAL:
            try:
                await node.publish(jobs.forgotten(channel, state.job, state.attempt, node.settings))
            except Problem as problem:
                if problem.code != "stale_version":  # else it goes on again, or another node was first
                    raise
            return True
    return False


def _find(snapshot: Snapshot, name: str) -> Message | None:
    return next((each for each in snapshot.messages if each.key == name and not each.deleted), None)


def _state(message: Message) -> State:
    return jobs.decode(message.data)


def _told(request: Request, snapshot: Snapshot, channel: str, found: Message | None, name: str) -> Response:
    """A job's state, with the position to follow its channel from."""
    cursor = encode_cursor({channel: snapshot.offset})
    etag = f'"{0 if found is None else found.offset}"'
    state = None if found is None else _state(found)
    headers = {"Cache-Control": "no-store", "ETag": etag, "Ringcast-Cursor": cursor}
    if state is None or not state.final:
        headers["Ringcast-Poll-Interval"] = f"{jobs.PACE['pending' if state is None else state.state]:g}"
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    body = {"job": jobs.pending(name) if found is None else msgspec.Raw(found.data), "channel": channel,
            "offset": snapshot.offset, "cursor": cursor}  # fmt: skip
    return Response(msgspec.json.encode(body), headers=headers, media_type=JSON)


def _channels(request: Request, identity: Identity, name: str) -> list[str]:
    """Where a job may be: with the user that is named, else with whoever asks, or with nobody."""
    user, parent = request.query_params.get("user"), request.query_params.get("parent")
    if user is not None or identity.subject is None:
        return [jobs.channel_of(name, user, parent)]
    return [jobs.channel_of(name, identity.subject), jobs.channel_of(name, None, parent)]


def _states(request: Request) -> set[str]:
    """The states of ?state=a,b; none for all."""
    asked = {state for state in request.query_params.get("state", "").split(",") if state}
    if unknown := asked.difference(jobs.STATES):
        known = ", ".join(jobs.STATES)
        raise Problem("bad_request", f"state is one or more of {known}, not {clip(min(unknown))}", field="state")
    return asked
