"""Publishes drafts and tells what became of each: a receipt, or the problem of that target alone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from gateway.brokers.base import Receipt
from gateway.errors import Problem
from gateway.identity import Identity
from gateway.message import Draft
from gateway.publish import Refusal

AT_A_TIME = 100  # targets of one publish that are on their way to the store together

log = logging.getLogger("ringcast.publish")


class Publishes(Protocol):
    async def publish(self, draft: Draft) -> Receipt:
        """Store and announce one message; raises Problem."""


async def publish_one(node: Publishes, identity: Identity, item: Draft | Refusal) -> Receipt:
    """Publish where `identity` may; raises Problem."""
    if isinstance(item, Refusal):
        raise item.problem
    identity.check_publish(item.channel)
    return await node.publish(item)


async def publish_each(
    node: Publishes, identity: Identity, items: Sequence[Draft | Refusal]
) -> list[Receipt | dict[str, Any]]:
    """What became of each item, in their order; none keeps another from being published."""
    if len(items) == 1:
        return [await _told(node, identity, items[0])]
    results: list[Receipt | dict[str, Any]] = []
    for first in range(0, len(items), AT_A_TIME):
        results += await asyncio.gather(*(_told(node, identity, item) for item in items[first : first + AT_A_TIME]))
    return results


async def _told(node: Publishes, identity: Identity, item: Draft | Refusal) -> Receipt | dict[str, Any]:
    try:
        return await publish_one(node, identity, item)
    except Problem as problem:
        return {"channel": item.channel, "error": problem.as_json()}
    except Exception:
        # The others may be stored by now, which their publisher must be told.
        log.exception("publishing to one of several targets failed")
        failure = Problem("server_error", "The gateway failed on this target; its log says how")
        return {"channel": item.channel, "error": failure.as_json()}


def check_unexpired(identity: Identity) -> None:
    """Raise Problem("token_expired") when what let the publisher in has ended since."""
    if identity.expires is not None and time.time() >= identity.expires:
        raise Problem("token_expired", "The token has expired meanwhile: get a new one and send the rest")
