"""What presence costs a node: users who come, stay and go, on one node of a store; who is not shown fails the run.

    python -m tests.benchmarks.presence [--broker redis|nats|memory] [--users 10000] [--rooms 100] [--stay 20]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from gateway.app import create_app
from gateway.brokers.base import Receipt
from gateway.identity import user_identity
from gateway.message import Draft
from gateway.node import Node
from gateway.session import Ask, Calls, Session
from gateway.settings import Policy, Settings
from tests.support.nats import NatsServer
from tests.support.redis import RedisServer


class Count:
    """What a node publishes, and the CPU that this process uses."""

    def __init__(self, node: Node) -> None:
        self.published = 0
        self._publish = node.broker.publish
        node.broker.publish = self._counted  # type: ignore[method-assign]  # to count, nothing else

    async def _counted(self, draft: Draft) -> Receipt:
        self.published += 1
        return await self._publish(draft)

    def begin(self) -> None:
        self._from = (self.published, time.process_time(), time.monotonic())

    def tell(self, what: str, users: int) -> None:
        published, cpu, began = self._from
        cpu, took = time.process_time() - cpu, time.monotonic() - began
        print(f"{what:6} {took:6.1f} s  {(self.published - published) / users:6.2f} publishes a user"
              f"  {cpu / users * 1e6:8.1f} us CPU a user  {cpu / took * 100:5.1f} % of a core")  # fmt: skip


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(300):
        while not await condition():  # noqa: ASYNC110 - it is asked of a store
            await asyncio.sleep(0.1)


async def shows(node: Node, rooms: list[str], users: int) -> bool:
    members = 0
    for room in rooms:
        members += len((await node.broker.snapshot(f"presence:{room}")).messages)
    return members == users and node.presence is not None and not node.presence.busy


async def is_home(node: Node) -> bool:
    return node.broker.connected and all(map(node.cluster.is_home, range(node.settings.partitions)))


async def measure(broker: str, users: int, count: int, stay: float) -> None:
    settings = Settings(broker=broker, channels={"room": Policy(presence=True)}, presence_grace=1.0)
    node: Node = create_app(settings).state.node
    await node.start()
    rooms = [f"room:{n}" for n in range(count)]
    await until(lambda: is_home(node))
    await asyncio.sleep(3)  # it becomes the home of every partition
    counted = Count(node)
    counted.begin()
    await asyncio.sleep(stay)
    counted.tell("idle", users)
    sessions: list[Session] = []
    counted.begin()
    for number in range(users):
        session = node.session(user_identity(f"u{number}", ["room:*"]), Calls(lambda: None), welcome=False)
        await node.open(session, [Ask(rooms[number % count])])
        await asyncio.sleep(0)  # others would not come without the loop either
        sessions.append(session)
    await until(lambda: shows(node, rooms, users))
    counted.tell("come", users)
    counted.begin()
    await asyncio.sleep(stay)
    counted.tell("stay", users)
    counted.begin()
    for session in sessions:
        node.leave(session)
    await until(lambda: shows(node, rooms, 0))
    counted.tell("go", users)
    await node.stop()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--broker", default="redis", choices=["redis", "nats", "memory"])
    for name, default in (("users", 10000), ("rooms", 100), ("stay", 20)):
        ask.add_argument(f"--{name}", type=int, default=default)
    given = ask.parse_args()
    with ExitStack() as stack:
        url = "memory://"
        if given.broker == "redis":
            url = stack.enter_context(RedisServer()).url
        elif given.broker == "nats":
            url = stack.enter_context(NatsServer()).url
        asyncio.run(measure(url, given.users, given.rooms, given.stay))


if __name__ == "__main__":
    main()
