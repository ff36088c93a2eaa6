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

AT_A_TIME = 100  # that are on their way to the store together

log = logging.getLogger("ringcast.publish")


class Publishes(Protocol):
    def publish_at_once(self, draft: Draft) -> Receipt:
        """The same as `publish`, where the store is this process's own."""

    async def publish(self, draft: Draft) -> Receipt:
        """Store and announce one message; raises Problem."""

    async def publish_all(self, drafts: Sequence[Draft]) -> list[Receipt | Exception]:
        """The same for several: what became of each, those of one channel in their order."""


async def publish_items(node: Publishes, identity: Identity, items: Sequence[Draft | Refusal]) -> list[Any]:
    """What became of each target of one publish. Raises Problem where there is a single one that is refused."""
    if len(items) == 1:
        return [await publish_one(node, identity, items[0])]
    return await publish_each(node, identity, items)


async def publish_one(node: Publishes, identity: Identity, item: Draft | Refusal) -> Receipt:
    """Publish where `identity` may; raises Problem."""
    return await node.publish(_allowed(identity, item))


def publish_at_once(node: Publishes, identity: Identity, item: Draft | Refusal) -> Receipt:
    """The same where the store is this process's own."""
    return node.publish_at_once(_allowed(identity, item))


def _allowed(identity: Identity, item: Draft | Refusal) -> Draft:
    if isinstance(item, Refusal):
        raise item.problem
    identity.check_publish(item.channel)
    return item


async def publish_each(
    node: Publishes, identity: Identity, items: Sequence[Draft | Refusal]
) -> list[Receipt | dict[str, Any]]:
    """What became of each item, in their order; none keeps another from being published.

    Those of one channel are stored in their order.
    """
    results: list[Receipt | dict[str, Any]] = []
    for first in range(0, len(items), AT_A_TIME):
        if first:
            await asyncio.sleep(0)  # others have their turn
        results += await _publish_some(node, identity, items[first : first + AT_A_TIME])
    return results


async def _publish_some(
    node: Publishes, identity: Identity, items: Sequence[Draft | Refusal]
) -> list[Receipt | dict[str, Any]]:
    refused: dict[int, Problem] = {}
    drafts: list[Draft] = []
    for place, item in enumerate(items):
        if isinstance(item, Refusal):
            refused[place] = item.problem
            continue
        try:
            identity.check_publish(item.channel)
        except Problem as problem:
            refused[place] = problem
        else:
            drafts.append(item)
    published = iter(await node.publish_all(drafts))
    if not refused:
        return [found if isinstance(found, Receipt) else _told(item, found)
                for item, found in zip(items, published, strict=True)]  # fmt: skip
    results: list[Receipt | dict[str, Any]] = []
    for place, item in enumerate(items):
        found = refused[place] if place in refused else next(published)
        results.append(found if isinstance(found, Receipt) else _told(item, found))
    return results


def _told(item: Draft | Refusal, error: Exception) -> dict[str, Any]:
    if not isinstance(error, Problem):
        log.error("publishing to one of several targets failed", exc_info=error)
        error = Problem("server_error", "The gateway failed on this target; its log says how")
    return {"channel": item.channel, "error": error.as_json()}


def check_unexpired(identity: Identity) -> None:
    """Raise Problem("token_expired") when what let the publisher in has ended since."""
    if identity.expires is not None and time.time() >= identity.expires:
        raise Problem("token_expired", "The token has expired meanwhile: get a new one and send the rest")
