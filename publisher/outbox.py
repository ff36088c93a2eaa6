"""The outbox in PostgreSQL: what waits to be published, and which relay has it at the moment.

Every channel belongs to one of 64 lanes, and a relay holds a lane's advisory lock from before it reads the lane's first
rows until it has recorded what became of them. So a channel's rows are read by one relay at a time, in the order of
their ids, and the next relay begins where the last one stopped. (FOR UPDATE SKIP LOCKED on the rows would let a second
relay overtake the first within a channel; with the lanes it has nothing left to skip.) The lock belongs to the
connection: with a relay's death PostgreSQL takes it back.

Before rows are sent, it is recorded up to which and since when they may be stored already; the record goes when their
answers are known. What it says beyond the gateway's idempotency window has to be looked up in the channels' logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.resources import files
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, class_row

from publisher.delivery import trusted
from publisher.errors import InvalidMessage, Refused
from publisher.message import Entry, Message, prepare

MIGRATION = files("publisher").joinpath("outbox.sql").read_text()

# Its own death is noticed by the server, and the server's by it, within half a minute also where no packet says so.
_CONNECT: dict[str, Any] = {
    "connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 25_000, "application_name": "ringcast relay",
}  # fmt: skip
_SESSION = """
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 25000; SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '60s';
    SET synchronous_commit = off; LISTEN ringcast_outbox
"""  # a lost deletion is a row sent twice under one id, which the gateway stores once

_CLAIM = """
    WITH waiting AS MATERIALIZED (
        SELECT lane FROM ringcast_outbox_lanes AS lanes
        WHERE EXISTS (SELECT FROM ringcast_outbox AS rows WHERE rows.lane = lanes.lane) ORDER BY random()
    )
    SELECT lane FROM waiting WHERE pg_try_advisory_lock('ringcast_outbox'::regclass::int, lane) LIMIT %s
"""
_DOUBTS = """
    SELECT lane, extract(epoch FROM doubt_from)::float8 AS since, doubt_through AS through,
        now() - doubt_from > %s AS stale
    FROM ringcast_outbox_lanes WHERE lane = ANY (%s) AND doubt_through IS NOT NULL
"""
_READ = """
    SELECT lane, id, channel, event, body AS data, key, version, deleted, ttl, message_id
    FROM unnest(%(lanes)s::smallint[]) AS mine (number) CROSS JOIN LATERAL (
        SELECT head.*, sum(octet_length(body)) OVER (ORDER BY id) - octet_length(body) AS before FROM (
            SELECT lane, id, channel, event, data::text AS body, key, version, deleted, ttl, message_id
            FROM ringcast_outbox WHERE lane = mine.number ORDER BY id LIMIT %(rows)s
        ) AS head
    ) AS sized WHERE before < %(bytes)s ORDER BY lane, id
"""
_DOUBT = """
    UPDATE ringcast_outbox_lanes AS lanes
    SET doubt_from = CASE WHEN doubt_through >= first THEN doubt_from ELSE now() END,
        doubt_through = greatest(doubt_through, last)
    FROM unnest(%s::smallint[], %s::bigint[], %s::bigint[]) AS mine (lane, first, last) WHERE lanes.lane = mine.lane
"""
_CERTAIN = "UPDATE ringcast_outbox_lanes SET doubt_from = NULL, doubt_through = NULL WHERE lane = ANY (%s)"
_DELETE = """
    DELETE FROM ringcast_outbox AS rows USING unnest(%s::smallint[], %s::bigint[]) AS done (lane, id)
    WHERE rows.lane = done.lane AND rows.id = done.id
"""
_REFUSE = """
    WITH gone AS (
        DELETE FROM ringcast_outbox AS rows USING unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) AS done (lane, id)
        WHERE rows.lane = done.lane AND rows.id = done.id RETURNING rows.*
    )
    INSERT INTO ringcast_outbox_refused SELECT gone.*, reasons.code, reasons.reason
    FROM gone JOIN unnest(%(ids)s::bigint[], %(codes)s::text[], %(reasons)s::text[]) AS reasons (id, code, reason)
    USING (id)
"""
_RELEASE = "SELECT pg_advisory_unlock('ringcast_outbox'::regclass::int, lane) FROM unnest(%s::int[]) AS mine (lane)"
_BACKLOG = """
    SELECT (SELECT count(*) FROM (SELECT FROM ringcast_outbox LIMIT 100000) AS head) AS rows,
        (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)
         FROM ringcast_outbox_lanes AS lanes CROSS JOIN LATERAL (
            SELECT created_at FROM ringcast_outbox AS rows WHERE rows.lane = lanes.lane ORDER BY id LIMIT 1
         ) AS first)::float8 AS oldest,
        (SELECT count(*) FROM ringcast_outbox_refused) AS refused
"""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A message that waits to be published."""

    lane: int
    id: int
    channel: str
    event: str
    data: str  # JSON
    key: str | None
    version: list[int] | None
    deleted: bool
    ttl: float | None  # seconds
    message_id: str

    def entry(self) -> Entry | InvalidMessage:
        """The message as it is sent, or what is wrong with it."""
        try:
            return prepare(
                Message(channel=self.channel, event=self.event, data=msgspec.Raw(self.data.encode()), key=self.key,
                        version=self.version, deleted=self.deleted, ttl=self.ttl, id=self.message_id)
            )  # fmt: skip
        except InvalidMessage as error:
            return error


@dataclass(frozen=True, slots=True)
class Doubt:
    """What of a lane may be stored already: sent once, its answer never heard."""

    lane: int
    since: float  # seconds since 1970, by PostgreSQL's clock
    through: int  # the highest id that was sent
    stale: bool  # so long ago that the gateway may have forgotten the ids


@dataclass(slots=True)
class Lane:
    """A lane's first rows, in their order, while this relay has it."""

    number: int
    rows: list[Row] = field(default_factory=list)
    doubt: Doubt | None = None

    @property
    def certain(self) -> bool:
        """Whether nothing is in doubt any more once what became of all these rows is known."""
        return self.doubt is None or self.rows[-1].id >= self.doubt.through


@dataclass(frozen=True, slots=True)
class Backlog:
    rows: int  # that wait; 100,000 stands for any number from there on
    oldest: float  # seconds that the oldest one has waited
    refused: int  # that were set aside


class Outbox:
    """One connection to the database, and the lanes that it holds. Whatever psycopg.Error a verb raises, it is over."""

    def __init__(self, connection: AsyncConnection[TupleRow], window: float) -> None:
        """`window` (seconds) is the gateway's idempotency window."""
        self._connection = connection
        self._stale = timedelta(seconds=trusted(window))
        self._notified = False
        connection.add_notify_handler(lambda _: self._notify())

    @classmethod
    async def connect(cls, conninfo: str, window: float) -> Outbox:
        """Raises psycopg.Error: OperationalError where nobody answers, UndefinedTable where there is no outbox yet."""
        whole = make_conninfo(**_CONNECT | conninfo_to_dict(conninfo))
        connection = await AsyncConnection.connect(whole, autocommit=True)
        try:
            for statement in _SESSION.split(";"):
                await connection.execute(statement.encode())
            await connection.execute("SELECT FROM ringcast_outbox, ringcast_outbox_lanes LIMIT 1")
        except BaseException:
            await connection.close()
            raise
        return cls(connection, window)

    async def claim(self, most: int) -> list[int]:
        """Lanes, `most` of them, that have rows and no other relay; this one has them until they are released."""
        self._notified = False
        return [lane async for (lane,) in await self._connection.execute(_CLAIM, [most])]

    async def read(self, lanes: Sequence[int], rows: int, size: int) -> list[Lane]:
        """Their first rows, so many and so many bytes of data together; each lane's first one always.

        When this returns it is recorded that they may be sent now.
        """
        found = {number: Lane(number) for number in lanes}
        share = {"rows": max(1, rows // len(lanes)), "bytes": size // len(lanes)}
        async with self._connection.transaction():
            await self._connection.execute("SET LOCAL synchronous_commit = on")
            async with self._connection.cursor(row_factory=class_row(Doubt)) as doubts:
                await doubts.execute(_DOUBTS, [self._stale, list(lanes)])
                async for doubt in doubts:
                    found[doubt.lane].doubt = doubt
            async with self._connection.cursor(row_factory=class_row(Row)) as heads:
                await heads.execute(_READ, {"lanes": list(lanes), **share})
                async for row in heads:
                    found[row.lane].rows.append(row)
            filled = [lane for lane in found.values() if lane.rows]
            await self._connection.execute(_DOUBT, [
                [lane.number for lane in filled], [lane.rows[0].id for lane in filled],
                [lane.rows[-1].id for lane in filled],
            ])  # fmt: skip
        return filled

    async def settle(self, done: Collection[Row], refused: Mapping[Row, Refused], certain: Collection[int]) -> None:
        """Record what became of rows: published and gone, or set aside; and the lanes without doubts."""
        async with self._connection.transaction():
            if done:
                await self._connection.execute(_DELETE, [[row.lane for row in done], [row.id for row in done]])
            if refused:
                await self._connection.execute(_REFUSE, {
                    "lanes": [row.lane for row in refused], "ids": [row.id for row in refused],
                    "codes": [why.code for why in refused.values()],
                    "reasons": [why.detail for why in refused.values()],
                })  # fmt: skip
            if certain:
                await self._connection.execute(_CERTAIN, [list(certain)])

    async def release(self, lanes: Sequence[int]) -> None:
        await self._connection.execute(_RELEASE, [list(lanes)])

    async def backlog(self) -> Backlog:
        async with self._connection.cursor(row_factory=class_row(Backlog)) as cursor:
            await cursor.execute(_BACKLOG)
            found = await cursor.fetchone()
        assert found is not None
        return found

    async def wait(self, seconds: float, stop: asyncio.Event) -> None:
        """Return when a transaction may have published since the last `claim`, at the latest after so many seconds."""
        if self._notified:
            return
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        descriptor = self._connection.fileno()
        loop.add_reader(descriptor, readable.set)
        waiting = [asyncio.create_task(event.wait()) for event in (readable, stop)]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(descriptor)
            for task in waiting:
                task.cancel()

    def _notify(self) -> None:
        self._notified = True

    async def close(self) -> None:
        await self._connection.close()
