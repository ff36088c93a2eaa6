"""What an operator asks a node: who else serves, and where something that should have arrived stands."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.message import MAX_OFFSET
from gateway.node import Node
from gateway.session import Session

MOST = 100  # sessions that an explanation lists
OVERLOADED = 1.0  # seconds that the event loop is late, lately


def nodes(node: Node, *, details: bool = False) -> dict[str, Any]:
    """All nodes as this one sees them. Nodes whose hashes are the same place every partition alike.

    With `details` come what each node carries, and the home of every partition as an index into `on_ring`.
    """
    view = node.cluster.view
    members = [
        {"node": name, **msgspec.to_builtins(member), "home_of": view.ring.shares[name]}
        for name, member in sorted(view.members.items())
    ]
    told = {"node": view.own, "hash": view.ring.hash, "partitions": view.ring.partitions, "nodes": members}
    if details:
        index = {name: number for number, name in enumerate(view.ring.members)}
        told["on_ring"] = view.ring.members
        told["homes"] = [index[home] for home in view.ring.homes]
    else:
        for member in members:
            del member["load"]
    return told


def unready(node: Node) -> dict[str, str]:
    """Why this node should get no traffic: by a word, in a sentence. Empty where it should."""
    found = {"draining": "this node is shutting down"} if node.draining else {}
    found |= node.missing()
    if node.metrics.late > OVERLOADED:
        found["overloaded"] = f"the event loop is {node.metrics.late:.1f} s late"
    return found


async def route(node: Node, channel: str) -> dict[str, Any]:
    """The way of a channel's messages through this node.

    `watermark` is what this node has seen of the partition (None where it does not follow it), `top` what the store
    holds. The sessions are those of this node. Raises Problem `unavailable`.
    """
    view, partition = node.cluster.view, node.partition(channel)
    top = (await node.broker.read(channel, MAX_OFFSET, 1)).top
    followed = node.hub.partitions.get(node.broker.partition(channel))
    home = view.ring.home(partition)
    sessions = [session for session in node.hub.sessions if channel in session.channels]
    return {
        "channel": channel, "partition": partition, "node": view.own, "hash": view.ring.hash,
        "home": home, "address": None if home is None else view.members[home].address,
        "interest": followed is not None, "watermark": None if followed is None else followed.top, "top": top,
        "subscriptions": len(sessions), "sessions": [_session(session, channel) for session in sessions[:MOST]],
    }  # fmt: skip


def _session(session: Session, channel: str) -> dict[str, Any]:
    return {
        "session": session.id, "position": session.position(session.channels[channel]),
        "queued": len(session.outbox), "queued_bytes": session.queued, "unsent_bytes": session.flying,
        "live": session.channels[channel] not in session.behind,
    }  # fmt: skip
