"""NATS JetStream, one server or a cluster. Streams keep the messages, and republish each as it is stored.

This file is the node's side: one connection at a time, and the verbs. Beside it are `nats_link` the connection,
`nats_api` JetStream's interface, `nats_names` and `nats_format` what things are called and how they are written,
`nats_streams` how streams are set up, `nats_lineage` and `nats_lines` how sequences become offsets and what a store
lost, `nats_live` what is followed, `nats_reader`, `nats_writer` and `nats_sweep` the work.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from gateway.brokers import nats_format
from gateway.brokers.base import Events, Page, Receipt, Snapshot, Unreadable, each_channel, unreadable
from gateway.brokers.breaker import Breakers
from gateway.brokers.cancelled import raise_if_cancelled
from gateway.brokers.chain import UNKNOWN, Chain
from gateway.brokers.nats_api import Api, ApiError
from gateway.brokers.nats_lines import Lines
from gateway.brokers.nats_link import Away, Link, NoStream, Refused, Url, all_of
from gateway.brokers.nats_live import Live
from gateway.brokers.nats_names import Names
from gateway.brokers.nats_reader import Reader
from gateway.brokers.nats_streams import Streams
from gateway.brokers.nats_sweep import Sweep
from gateway.brokers.nats_writer import Writer
from gateway.errors import Problem
from gateway.message import Draft
from gateway.settings import ConfigError, Settings

log = logging.getLogger("ringcast.nats")

PUBLISH_WITHIN = 4.0  # seconds; then the publisher is told to come again
READ_WITHIN = 5.0
BACKOFF = 2.0  # seconds between two attempts to connect, at most
LOOK = 0.25  # seconds between two looks at what is due
PROBE = 1.0  # seconds between two questions whether the store answers
SILENCE = 4.0  # seconds without an answer after which another server is tried
GRACE = 1.0  # seconds that a message may take from the store to here before it counts as lost
LATER = (1.0, 5.0)  # seconds after subscribing to look again: other servers learn of it only then
AGREE = 5.0  # seconds between two looks whether another node has brought another policy
SWEEP = 1.0  # seconds between two looks for keys whose time is over
_AWAY = (Away, ApiError)
T = TypeVar("T")
View = TypeVar("View", Page, Snapshot)


class NatsBroker:
    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError for a URL that cannot work."""
        self.settings = settings
        self.url = Url.parse(settings.broker)
        self.url.context()
        self.names = Names(self.url.prefix, settings)
        self.streams = Streams(settings, self.url, self.names)
        self.lines = Lines(self.names, self.streams)
        self.counts = self.lines.counts
        self.reader = Reader(settings, self.lines)
        self.writer = Writer(settings, self.lines, self.reader, self._tell, lambda number: self.chain.history(number))
        self._sweep = Sweep(self.lines, self.reader, self.writer)
        self.publish_all, self.publish_now = partial(each_channel, self.publish), None
        self.ids_used: Callable[[], int] = lambda: 0  # a stream remembers every message's, whatever its table takes
        self.homes: Callable[[], Collection[int]] = lambda: range(settings.partitions)  # whose keys this node ends
        self._servers = random.sample(self.url.servers, len(self.url.servers))
        self._api: Api | None = None
        self._started, self._nudged = asyncio.Event(), asyncio.Event()
        self._up = asyncio.Event()  # there is a connection, and all streams were looked at
        self._lost_at = self._answered_at = float("-inf")
        self._breakers = Breakers(self.names.stream, self._probe, (Problem,))
        self._chain: Chain | None = None
        self._live: Live | None = None
        self._unopened: set[int] = set()  # streams that could not be looked at yet
        self._again: list[tuple[float, list[int]]] = []  # when to check what was subscribed lately

    @classmethod
    def open(cls, settings: Settings) -> NatsBroker:
        return cls(settings)

    @property
    def connected(self) -> bool:
        up = self._api is not None and self._up.is_set() and not self._api.link.lost
        return up and asyncio.get_running_loop().time() - self._answered_at < SILENCE

    @property
    def chain(self) -> Chain:
        if self._chain is None:
            raise Problem("unavailable", "The node is starting: try again in a second", retry_after=1)
        return self._chain

    @property
    def link(self) -> Link:
        """The connection of this moment. Raises Away."""
        if self._api is None:
            raise Away("there is no connection")
        return self._api.link

    def partition(self, channel: str) -> int:
        return self.names.number(channel)

    def _highest(self, number: int) -> int:
        """The highest offset this node knows of in a stream."""
        return 0 if self._chain is None else self._chain.highest(number)

    # ---------------------------------------------------------------- the connection

    async def start(self) -> None:
        for server in list(self._servers):
            try:
                link = await Link.open(self.url, server)
            except Refused as error:
                raise ConfigError(f"broker: the NATS server does not let this node in: {error}") from error
            except Away as error:
                log.warning("a NATS server does not answer yet: %s", error)
                continue
            try:
                await self._prepare(Api(link))
            except _AWAY as error:
                log.warning("the NATS server is not ready yet: %s", error)
            finally:
                await link.close()
            return

    async def _prepare(self, api: Api) -> None:
        """Look at every stream, and make what is missing. Raises ConfigError, Away and ApiError."""
        if not api.link.holds(self.settings.max_message):
            raise ConfigError(
                f"max_message: the NATS server takes {api.link.connection.max_payload} bytes with all that goes around"
                f" a message of {self.settings.max_message}: raise its max_payload, or lower max_message"
            )
        await self._open(api, self.names.numbers)
        if 0 not in self._unopened:
            await self.streams.policies.agree(api)

    async def _open(self, api: Api, numbers: Collection[int]) -> None:
        """Look at these streams. Some may have no leader now; raises Away only when none could be looked at."""
        opening = (self.lines.open(api, number, self._highest(number)) for number in numbers)
        results = await asyncio.gather(*opening, return_exceptions=True)
        failed = {number: error for number, error in zip(numbers, results, strict=True) if error is not None}
        for error in failed.values():
            if not isinstance(error, _AWAY) or len(failed) == len(self.names.numbers):
                raise error
        self._unopened = set(failed)
        if failed:
            log.warning("%d of %d streams do not answer: %s", len(failed), len(self.names.numbers), error)

    async def run(self, events: Events) -> None:
        self._chain = Chain(events)
        self._started.set()
        attempts = 0
        sweeping = asyncio.create_task(self._keep_sweeping(), name="nats sweep")
        try:
            while True:
                began = asyncio.get_running_loop().time()
                link: Link | None = None
                try:
                    link = await Link.open(self.url, self._servers[0])
                    self._meet(link)
                    await self._serve(Api(link))
                except (Away, ApiError, Refused) as error:
                    log.warning("the connection to NATS is lost: %s", error or type(error).__name__)
                except ConfigError as error:
                    log.error("the NATS streams cannot be used any more: %s", error)
                except Exception:  # of a library, or a fault of ours: a node that listens no more helps nobody
                    log.exception("the reader of NATS failed, and begins anew")
                finally:
                    if self._up.is_set():
                        self._lost_at = asyncio.get_running_loop().time()
                        self.counts.disconnects += 1
                    self._up.clear()
                    self._api = self._live = None
                    if link is not None:
                        await link.close()
                raise_if_cancelled()
                self._servers.append(self._servers.pop(0))
                attempts = 1 if asyncio.get_running_loop().time() - began > 10 else attempts + 1
                await asyncio.sleep(random.uniform(0, min(BACKOFF, 0.05 * 2**attempts)))  # noqa: S311
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            self._started.clear()
            self._chain = None

    def _meet(self, link: Link) -> None:
        """Learn of the cluster's other servers; a lost connection wakes `run`."""
        head, at, _ = self._servers[0].rpartition("@")
        scheme = head + at if at else self._servers[0].partition("://")[0] + "://"
        for peer in link.peers():
            if scheme + peer not in self._servers:
                self._servers.append(scheme + peer)
        link.on_lost = self._nudged.set

    async def _serve(self, api: Api) -> None:
        """Subscribe, check; then see to it that all of it stays so. Ends by raising."""
        chain, loop = self.chain, asyncio.get_running_loop()
        await self._prepare(api)
        live = Live(self.lines, chain, api, self._nudged.set)
        await live.begin()
        self._api, self._live = api, live
        await live.listen(chain.followed)
        chain.suspect(chain.followed)
        try:
            await self._ask(api, chain.due)
        except _AWAY as error:  # those that did not answer are held back, and asked again
            log.warning("not all of the store answers: %s", error)
        self._answered_at = loop.time()
        self._up.set()
        probe_at = overdue_at = agree_at = loop.time() + GRACE
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._nudged.wait()
            self._nudged.clear()
            if api.link.lost:
                raise Away("the server closed the connection, or was silent")
            now = loop.time()
            if now - self._answered_at > SILENCE:
                raise Away(f"the store did not answer for {SILENCE:g} s: another server may")
            if now >= overdue_at:
                overdue_at = now + GRACE
                chain.overdue()
            try:
                if chain.due:
                    await self._ask(api, chain.due)
                while self._again and self._again[0][0] <= now:
                    _, numbers = heapq.heappop(self._again)
                    await self._ask(api, [number for number in numbers if number in chain.followed], live=True)
                if now >= agree_at:
                    agree_at = now + AGREE
                    await self.streams.policies.agree(api)
                if now >= probe_at:
                    probe_at = now + PROBE
                    if self._unopened:
                        await self._open(api, self._unopened)
                    await self.lines.look(api, random.choice(list(self.lines.lines.values())))  # noqa: S311
                self._answered_at = loop.time()
            except _AWAY as error:
                log.warning("the store did not answer: %s", error)

    # ---------------------------------------------------------------- following

    async def subscribe(self, partitions: Collection[int]) -> None:
        await self._started.wait()
        chain = self.chain
        new = [number for number in partitions if number not in chain.followed]
        live = self._live
        if not self._up.is_set() or live is None:
            raise Problem("unavailable", "The store does not answer: try again soon", retry_after=1)
        for number in new:
            chain.expect(number)
        try:
            await live.listen(new)
            await self._ask(live.api, new)  # over the same connection, so the server knows of the subscription first
        except _AWAY as error:
            unanswered = [number for number in new if chain.watermark(number) == UNKNOWN]
            for number in unanswered:  # the others are followed, for their watermark was told
                chain.end(number)
            await live.leave(unanswered)
            raise _unavailable(error) from error
        finally:
            now = asyncio.get_running_loop().time()
            for later in LATER if live.api.link.connection.clustered else ():
                heapq.heappush(self._again, (now + later, new))

    async def unsubscribe(self, partitions: Collection[int]) -> None:
        for number in partitions:
            self.chain.end(number)
        if self._live is not None:
            await self._live.leave(partitions)

    # ---------------------------------------------------------------- checking

    async def check(self, partitions: Collection[int]) -> None:
        await self._within(lambda api: self._ask(api, {*partitions, *self.chain.known}, live=True))

    async def _ask(self, api: Api, numbers: Iterable[int], *, live: bool = False) -> None:
        """Tell the store what is known of these streams, and go on from what it answers."""
        await all_of(self._ask_one(api, number, live=live) for number in list(numbers))

    async def _tell(self, api: Api, number: int) -> None:
        await self._ask_one(api, number, live=True)

    async def _ask_one(self, api: Api, number: int, *, live: bool = False) -> None:
        chain, line = self.chain, self.lines[number]
        async with line.asking:
            top, history = await self.lines.check(api, number, chain.claims(number))
            if live:
                turns = line.lineage.floor <= chain.watermark(number)  # else something was lost
                chain.reported(number, top, history, turns=turns)
            else:
                chain.answered(number, top, history)

    # ---------------------------------------------------------------- publishing and reading

    async def publish(self, draft: Draft) -> Receipt:
        number = self.names.number(draft.channel)
        breaker = self._breakers.of(number)
        breaker.pass_through()
        id, pause, why = nats_format.message_id(draft), 0.01, "there is no connection"
        patience = PUBLISH_WITHIN if self._up.is_set() else self._patience()
        try:
            async with asyncio.timeout(patience):
                while True:
                    await self._up.wait()
                    try:
                        if (api := self._api) is not None:
                            receipt, history = await self.writer.publish(api, draft, id)
                            break
                    except Away as error:  # also when it is stored already: the id makes it one
                        why = str(error)
                        if isinstance(error, NoStream):
                            self.lines.unready(number)  # it may have to be made again
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 0.2)
        except TimeoutError:
            problem = _unavailable(Away(why))
            if patience:  # else nobody waits for a connection any more
                breaker.trip(problem)
            raise problem from None
        except ApiError as error:
            raise _unavailable(error) from error
        except Unreadable as error:  # what the message is to replace, or to be compared with
            log.error("%s: a publish was refused: upgrade this node (%s)", draft.channel, error)
            raise unreadable() from error
        self.chain.acknowledged(number, receipt.offset, history)
        return receipt

    async def _probe(self, number: int) -> None:
        await self._within(lambda api: self.lines.look(api, self.lines[number]))

    def _patience(self) -> float:
        """How long to wait for a connection: less, the longer there has been none."""
        return max(0.0, self._lost_at + PUBLISH_WITHIN - asyncio.get_running_loop().time())

    async def read(self, channel: str, since: int, limit: int) -> Page:
        return await self._within(
            lambda api: self._read(api, channel, lambda: self.reader.read(api, channel, since, limit))
        )

    async def snapshot(self, channel: str) -> Snapshot:
        return await self._within(lambda api: self._read(api, channel, lambda: self.reader.snapshot(api, channel)))

    async def _read(self, api: Api, channel: str, read: Callable[[], Awaitable[tuple[View, str]]]) -> View:
        """Note what was read; where it is less than this node was told before, check first and read again."""
        number, chain = self.partition(channel), self.chain
        told = chain.watermark(number)
        found, history = await read()
        top = found.top if isinstance(found, Page) else found.offset
        if not chain.read(number, top, history) and told > top:
            await self._ask_one(api, number)
            found, _ = await read()
        return found

    async def position_at(self, channel: str, time: int) -> int:
        return await self._within(lambda api: self.reader.position_at(api, channel, time))

    async def _within(self, work: Callable[[Api], Awaitable[T]]) -> T:
        if not self._up.is_set() or self._api is None:
            raise _unavailable(Away("there is no connection"))
        try:
            async with asyncio.timeout(READ_WITHIN):
                return await work(self._api)
        except (*_AWAY, TimeoutError) as error:
            raise _unavailable(error) from error

    # ---------------------------------------------------------------- ending keys

    async def sweep(self, partitions: Collection[int]) -> None:
        """Publish the deletion of each key of these partitions whose time is over. Its home node does; two do no harm.

        Raises Problem `unavailable`.
        """
        await self._within(
            lambda api: self._sweep.sweep(api, [partition + self.settings.partitions for partition in partitions])
        )

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            await self._up.wait()
            try:
                await self.sweep(self.homes())
            except Problem as problem:
                log.warning("keys whose time is over stay a little longer: %s", problem)

    async def close(self) -> None:
        """`run` has let go of the connection when it ended."""
        await self._breakers.close()


def _unavailable(error: BaseException) -> Problem:
    raise_if_cancelled()
    why = str(error) or type(error).__name__
    return Problem("unavailable", f"The store does not answer ({why}): try again soon", retry_after=1)
