"""A trial of a running deployment: canaries, numbered publishes, and something that changes meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TypeVar

import httpx
import msgspec

from gateway.client import Event, Subscriber
from gateway.client.links import tls
from gateway.message import check_channel, new_id, partition_of
from gateway.verify import EVENT_SOURCE, TRANSPORTS, event_source
from gateway.verify.canary import Canary, Follow
from gateway.verify.ledger import Ledger
from gateway.verify.load import RETRY, Load
from gateway.verify.result import Result, judge
from gateway.verify.track import Tally, Track
from publisher import Refused

STARTS = 100  # canaries that are started in a second: a trial is no storm
JOIN_WITHIN = 30.0  # seconds for the last of them to have its first position
LEAD = 3.0  # seconds of publishing before the command begins, and after it has ended
EVERY = 0.05  # seconds between two requests that publish: they cost more than messages do
EXTRA = 0.5  # seconds after the last delivery, for what comes once too often
ASK_WITHIN = 10.0
TICKETS = 20  # asked for at a time
LONGEST = 3600.0  # seconds; every delivery is remembered
TICKET_TTL = "3h"


class NotStarted(Exception):
    """The trial could not be made; a sentence says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a trial is to be."""

    urls: Sequence[str]
    api_key: str
    clients: int = 40
    rate: float = 20.0  # messages a second, all channels together
    seconds: float = 60.0  # of publishing; longer where the command takes longer
    during: str | None = None  # a shell command
    channel: str = "topic:verify"  # what the names of the channels begin with
    transports: Sequence[str] = TRANSPORTS
    settle: float = 30.0  # seconds that a publish, and what is missing at the end, may take

    def check(self) -> None:
        """Raises ValueError for what cannot be meant."""
        if not self.api_key:
            raise ValueError("an API key is needed, for tickets and publishing: set RINGCAST_API_KEY")
        if unknown := [name for name in self.transports if name not in TRANSPORTS]:
            raise ValueError(f"there is no transport {unknown[0]!r}: use {', '.join(TRANSPORTS)}")
        if not 0 < self.seconds <= LONGEST:
            raise ValueError(f"a trial has at most {LONGEST:g} s, it remembers every delivery; not {self.seconds:g} s")
        if not 0 < self.settle <= LONGEST:
            raise ValueError(f"what is missing has at most {LONGEST:g} s to settle, not {self.settle:g} s")
        check_channel(self.channel)
        for url in self.urls:
            Subscriber(url, self.api_key)


class _Nodes(msgspec.Struct):
    partitions: int


class _Ticket(msgspec.Struct):
    ticket: str


Answer = TypeVar("Answer", _Nodes, _Ticket)


class Trial:
    """`phase` and `tallies` may be looked at while it runs."""

    def __init__(self, plan: Plan) -> None:
        """Raises ValueError for a plan that cannot be meant."""
        plan.check()
        self.plan = plan
        self.phase = "connecting"
        self.ledger = Ledger()
        self.tallies = {name: Tally(name) for name in plan.transports}
        self._run = f"verify-{new_id()}-"
        self._stop = asyncio.Event()
        self._command: int | None = None

    def stop(self) -> None:
        """Publish no more, and judge what there is."""
        self._stop.set()

    async def run(self) -> Result:
        """Raises NotStarted."""
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
            secure = tls(next((url for url in self.plan.urls if url.startswith("https:")), ""))
            http = await stack.enter_async_context(
                httpx.AsyncClient(timeout=ASK_WITHIN, limits=limits, verify=secure or False)
            )
            canaries = await self._canaries(http)
            lives: list[asyncio.Task[None]] = []
            stack.push_async_callback(_end, lives)
            await self._join(canaries, lives)
            self.phase = "publishing"
            await self._publish(sorted({canary.channel for canary in canaries}))
            self.phase = "settling"
            await self._settle()
            return judge(self.ledger, list(self.tallies.values()), time.monotonic() - began, self._command)

    # ---------------------------------------------------------------- canaries

    async def _canaries(self, http: httpx.AsyncClient) -> list[Canary]:
        """One for each transport in a channel, so that they see the same; the addresses have them in turn."""
        plan = self.plan
        partitions = [(await self._ask(http, "GET", f"{url}/v1/nodes", _Nodes)).partitions for url in plan.urls]
        room = asyncio.Semaphore(TICKETS)

        async def one(number: int) -> Canary:
            transport = plan.transports[number % len(plan.transports)]
            group = number // len(plan.transports)
            channel, name = f"{plan.channel}-{group}", f"{self._run}{number}"
            at = group % len(plan.urls)
            partition = partition_of(f"user:{name}", partitions[at])
            if transport == EVENT_SOURCE:
                asked = {"use": "stream", "user": name, "channels": [channel], "ttl": TICKET_TTL}
                async with room:
                    told = await self._ask(http, "POST", f"{plan.urls[at]}/v1/tickets", _Ticket, asked)
                follow = _bare(http, plan.urls[at], told.ticket, partition)
            else:
                follow = _subscriber(plan.urls[at], plan.api_key, channel, transport, partition)
            self.tallies[transport].canaries += 1
            return Canary(name, channel, self._run, self.tallies[transport], self.ledger, follow)

        return await asyncio.gather(*map(one, range(plan.clients)))

    async def _ask(
        self, http: httpx.AsyncClient, method: str, url: str, answer: type[Answer], body: object = None
    ) -> Answer:
        headers = {"Authorization": f"Bearer {self.plan.api_key}"}
        try:
            response = await http.request(method, url, headers=headers, json=body)
            if response.status_code == 200:
                return msgspec.json.decode(response.content, type=answer)
            problem = msgspec.json.decode(response.content, type=dict[str, object])
            raise NotStarted(f"{url}: refused ({response.status_code} {problem.get('code')}): {problem.get('detail')}")
        except httpx.HTTPError as error:
            raise NotStarted(f"{url}: {str(error) or type(error).__name__}") from None
        except msgspec.DecodeError:
            raise NotStarted(f"{url}: this is no gateway; it answered {response.status_code}") from None

    async def _join(self, canaries: Sequence[Canary], lives: list[asyncio.Task[None]]) -> None:
        for canary in canaries:
            lives.append(asyncio.create_task(canary.live(), name=canary.name))
            await asyncio.sleep(1 / STARTS)
        until = time.monotonic() + JOIN_WITHIN
        while waiting := [canary for canary in canaries if not canary.joined]:
            if self.ledger.faults:
                raise NotStarted(f"a canary gave up before it began: {self.ledger.faults[0].what}")
            if time.monotonic() > until:
                raise NotStarted(f"{len(waiting)} of {len(canaries)} canaries did not get through in {JOIN_WITHIN:g} s")
            await asyncio.sleep(0.05)

    # ---------------------------------------------------------------- load

    async def _publish(self, channels: Sequence[str]) -> None:
        plan = self.plan
        retry = dataclasses.replace(RETRY, deadline=max(plan.settle, ASK_WITHIN))
        load = Load(self.ledger, plan.urls, plan.api_key, channels, plan.rate, run=self._run, retry=retry, every=EVERY)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(load.run(self._stop))
                timing = tasks.create_task(self._time())
                await self._stop.wait()
                timing.cancel()
        except ExceptionGroup as group:
            refused = _first(group)
            if not isinstance(refused, Refused):
                raise
            raise NotStarted(f"a publish was refused ({refused.status} {refused.code}): {refused}") from None

    async def _time(self) -> None:
        """Stop publishing when the time is over and the command has ended."""
        until = time.monotonic() + self.plan.seconds
        if self.plan.during is not None:
            lead = min(LEAD, self.plan.seconds / 4)
            await asyncio.sleep(lead)
            self.phase = "publishing while the command runs"
            self._command = await _shell(self.plan.during)
            self.phase = "publishing"
            until = max(until, time.monotonic() + lead)
        await asyncio.sleep(max(0.0, until - time.monotonic()))
        self._stop.set()

    async def _settle(self) -> None:
        until = time.monotonic() + self.plan.settle
        while next(self.ledger.unseen(), None) is not None and time.monotonic() < until:  # noqa: ASYNC110 - asks all it heard
            await asyncio.sleep(0.1)
        await asyncio.sleep(EXTRA)


def _subscriber(url: str, api_key: str, channel: str, transport: str, partition: int) -> Follow:
    async def follow(track: Track) -> AsyncGenerator[Event]:
        async with Subscriber(
            url, api_key, [channel], transport=transport, partition=partition, watch=track
        ) as subscriber:
            async for event in subscriber:
                yield event

    return follow


def _bare(http: httpx.AsyncClient, url: str, ticket: str, partition: int) -> Follow:
    return lambda track: event_source.follow(http, url, ticket, partition, track)


async def _shell(command: str) -> int:
    """Run a command, whose output goes to stderr; it ends with us."""
    process = await asyncio.create_subprocess_shell(
        command, stdin=asyncio.subprocess.DEVNULL, stdout=2, stderr=2, start_new_session=True
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            await process.wait()
            with suppress(ProcessLookupError):  # what the shell was just about to start knew nothing of it
                os.killpg(process.pid, signal.SIGTERM)


async def _end(lives: Sequence[asyncio.Task[None]]) -> None:
    for life in lives:
        life.cancel()
    await asyncio.gather(*lives, return_exceptions=True)


def _first(group: ExceptionGroup) -> Exception:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, ExceptionGroup) else found
