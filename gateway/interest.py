"""Which partitions a node follows: those with a local subscriber, and for a while those that had one."""

from __future__ import annotations

import asyncio

from gateway.brokers.base import Broker
from gateway.errors import Problem
from gateway.hub import Hub
from gateway.settings import Settings
from gateway.wheel import TICK


class Interest:
    """The one owner of the broker's subscriptions. What comes up while one batch is under way is the next batch."""

    def __init__(self, settings: Settings, broker: Broker, hub: Hub) -> None:
        self._linger = settings.linger
        self._broker = broker
        self._hub = hub
        self._following: dict[int, asyncio.Future[None]] = {}  # partitions that somebody waits for
        self._wanted = asyncio.Event()

    async def follow(self, partitions: set[int]) -> None:
        """Wait until all of these are followed. Costs nothing when they are; raises Problem("unavailable")."""
        while missing := [partition for partition in partitions if partition not in self._hub.partitions]:
            loop = asyncio.get_running_loop()
            waiting = [self._following.setdefault(partition, loop.create_future()) for partition in missing]
            self._wanted.set()
            await asyncio.gather(*(asyncio.shield(future) for future in waiting))

    async def run(self) -> None:
        """Subscribe to what is wanted, and unsubscribe from what nobody wants any more; ends only by cancellation."""
        while True:
            try:
                async with asyncio.timeout(max(TICK, min(1.0, self._linger / 4))):
                    await self._wanted.wait()
            except TimeoutError:
                await self._unfollow()
                continue
            self._wanted.clear()
            wanted, self._following = self._following, {}
            try:
                await self._broker.subscribe([p for p in wanted if p not in self._hub.partitions])
            except Problem as problem:
                for future in wanted.values():
                    future.set_exception(problem)
                    future.exception()  # whoever waited may have left
            else:
                for future in wanted.values():
                    future.set_result(None)

    async def _unfollow(self) -> None:
        now = asyncio.get_running_loop().time()
        idle: list[int] = []
        for number, partition in self._hub.partitions.items():
            if partition.subscriptions:
                partition.idle_since = None
            elif partition.idle_since is None:
                partition.idle_since = now
            elif now - partition.idle_since >= self._linger:
                idle.append(number)
        if not idle:
            return
        for number in idle:  # first here, so that nobody joins what is about to go
            self._hub.forget(number)
        await self._broker.unsubscribe(idle)
