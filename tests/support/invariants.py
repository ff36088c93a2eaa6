"""What must hold in a simulated world after each step, and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.message import Message

if TYPE_CHECKING:
    from tests.support.simulated_node import Node
    from tests.support.subscriber import Subscriber
    from tests.support.world import World


EACH = 5000  # bytes that each session may have beyond a used up budget: one message, and frames of other kinds


def bounds(world: World, node: Node) -> None:
    hub, settings = node.hub, world.settings
    for session in hub.sessions:
        queued = sum(item.size for item in session.outbox)
        if queued != session.queued:
            world.fail(f"{node.name}: a session counts {session.queued} of {queued} queued bytes")
        sizes = [item.size for item in session.outbox if isinstance(item, Message)]
        if sum(sizes) > settings.outbox_bytes + max(sizes, default=0) or len(sizes) > settings.outbox_items:
            world.fail(f"{node.name}: {len(sizes)} messages of {sum(sizes)} bytes wait in one outbox")
    used = sum(session.queued + session.flying for session in hub.sessions)
    if used != hub.budget.used:
        world.fail(f"{node.name}: the budget counts {hub.budget.used} of {used} bytes")
    beyond = used + hub.recent.bytes - hub.budget.limit
    if beyond > len(hub.sessions) * EACH:
        world.fail(f"{node.name}: {beyond} bytes more than the budget are held for {len(hub.sessions)} sessions")


def recent(world: World, node: Node) -> None:
    hub = node.hub
    channels = [channel for at in hub.partitions.values() for channel in at.channels.values()]
    held = sum(message.size for channel in channels for message in channel.recent)
    if held != hub.recent.bytes or held > hub.recent.limit:
        world.fail(f"{node.name}: recent counts {hub.recent.bytes} of {held} bytes, may hold {hub.recent.limit}")
    for number, at in hub.partitions.items():
        followed = node.chain.followed[number]
        if followed.watermark != at.top:
            world.fail(f"{node.name}: the hub was told up to {at.top}, the chain up to {followed.watermark}")
        part = world.store.state.parts.get(number)
        if part is None or part.history != world.store.history or followed.history != part.history:
            continue  # not checked since the store was replaced
        owed = {
            id for id in world.lineage
            if (r := world.records[id]).partition == number and at.whole < r.offset <= at.top
        }  # fmt: skip
        have = {message.id for channel in at.channels.values() for message in channel.recent}
        if not owed <= have:
            world.fail(f"{node.name}: of partition {number} above {at.whole}, {sorted(owed - have)} are not recent")


def store(world: World) -> None:
    state = world.store.state
    size = 0
    for name, log in state.logs.items():
        entries = sum(entry.message.size for entry in log.entries)
        if entries != log.bytes or len(log.entries) > log.policy.history_size:
            world.fail(f"store: {name} counts {log.bytes} of {entries} bytes in {len(log.entries)} entries")
        if log.live_keys != sum(not key.message.deleted for key in log.keys.values()):
            world.fail(f"store: {name} counts {log.live_keys} live keys")
        size += entries + 700 + sum(300 + key.message.size for key in log.keys.values())
    if size != state.bytes:
        world.fail(f"store: counts {state.bytes} of {size} bytes")
    ids = sum(300 + sum(map(len, scope)) for scope in state.ids._known)
    if ids != state.ids.bytes:
        world.fail(f"store: ids count {state.ids.bytes} of {ids} bytes")


def missed(world: World, client: Subscriber) -> None:
    """Every message that the store has, had, or a node knows of was seen, or told as lost, or replaced."""
    newer: set[tuple[str, str]] = set()  # keys of which it knows a newer value than those looked at
    for record in sorted(world.records.values(), key=lambda r: r.offset, reverse=True):
        channel = record.channel
        if channel not in client.channels:
            continue
        key = (channel, record.key) if record.key and world.settings.policy(channel).slow == "latest" else None
        fine = (
            record.id in client.seen[channel]
            or record.number <= client.since[channel]
            or record.number <= client.told[channel]
        )
        if not fine and key in newer:
            continue
        if fine and key is not None:
            newer.add(key)
        known = record.id in world.lineage or any(node.knows(record) for node in world.nodes)
        if not fine and known:
            world.fail(f"{client.name} ({client.kind}): silently missed {record}")
