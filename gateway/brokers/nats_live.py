"""Live messages: subscribing to what the streams republish, and passing it through the chain.

All of it is looked at as it is read, in the order in which it comes over the link: so a take-over is known here before
the answer to a message that lies behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from nats.aio.subscription import Subscription

from gateway.brokers import nats_format, nats_lineage
from gateway.brokers.chain import Chain, Frame, Turn
from gateway.brokers.nats_api import Api
from gateway.brokers.nats_lines import Line, Lines
from gateway.brokers.nats_link import BROKEN

log = logging.getLogger("ringcast.nats")

_SEQUENCE = b"\r\nNats-Sequence:"


class Live:
    """What is followed over one connection. `wake` is called when the chain has something to ask the store."""

    def __init__(self, lines: Lines, chain: Chain, api: Api, wake: Callable[[], None]) -> None:
        self.lines = lines
        self.names = lines.names
        self.chain = chain
        self.api = api
        self.wake = wake
        self._subscriptions: dict[int, Subscription] = {}

    async def begin(self) -> None:
        """Hear of every take-over: offsets go another way from there on, also of what this node only publishes."""
        await self.api.link.listen(self.names.live_records, self._on_record)

    async def listen(self, numbers: Iterable[int]) -> None:
        """Subscribe to these streams' live messages, and see to it that their leaders know. Raises Away."""
        new = [number for number in numbers if number not in self._subscriptions]
        for number in new:
            callback = partial(self._on_live, number)
            self._subscriptions[number] = await self.api.link.listen(f"{self.names.live(number)}.>", callback)
        if self.api.link.connection.clustered:
            await asyncio.gather(*(self.api.reach(self.names.nothing(number)) for number in new))

    async def leave(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            subscription = self._subscriptions.pop(number, None)
            if subscription is not None:
                with suppress(*BROKEN):  # the connection is gone, and the subscription with it
                    await subscription.unsubscribe()

    def _on_live(self, number: int, subject: bytes, payload: bytes, headers: bytes) -> None:
        if number not in self.chain.followed:
            return
        try:
            if subject.endswith(b".!"):
                self._on_nudge(number, int(payload))
            elif subject.endswith(b".@"):
                self._on_take_over(self.lines[number], nats_lineage.decode(payload), _sequence(headers))
            else:
                self._on_message(self.lines[number], *nats_format.decode(payload), _sequence(headers))
        except (ValueError, KeyError) as error:  # whatever it was, it was missed
            log.error("what was announced on %s cannot be read, and counts as lost: upgrade this node (%s)",
                      subject.decode(errors="replace"), error)  # fmt: skip
            self.lines.doubt(number)
            self.chain.suspect([number])
        if self.chain.due:
            self.wake()

    def _on_message(self, line: Line, meta: nats_format.Meta, data: bytes, seq: int) -> None:
        lineage = line.lineage
        if lineage.knows(meta.history):
            sure = seq <= line.clear + 1  # else a record that was not announced here may lie before it
            if sure:
                line.clear = max(line.clear, seq)
            before, message = lineage.offset(seq - 1), meta.message(lineage.offset(seq), data)
            self.chain.frame(Frame(line.number, before, lineage.history_at(seq), message, sure))
        else:
            self.lines.doubt(line.number)
            self.chain.suspect([line.number])  # the check that follows covers this message

    def _on_take_over(self, line: Line, record: nats_lineage.Record, seq: int) -> None:
        """The stream goes on under another server process. Where nothing was lost, so does its chain."""
        if seq > line.lineage.seq and record.before == line.lineage.history:
            line.lineage = nats_lineage.Lineage.of(record, seq)
            if seq == line.clear + 1:
                line.clear = seq
        self.lines.doubt(line.number)
        lineage = line.lineage
        if record.lost or not lineage.knows(record.history):
            self.chain.suspect([line.number])
        else:
            before, offset = lineage.offset(seq - 1), lineage.offset(seq)
            self.chain.turn(Turn(line.number, before, offset, record.before, record.history))

    def _on_nudge(self, number: int, seq: int) -> None:
        """A publisher was told that this message is a repeat: a leader that went may not have announced it."""
        if self.lines[number].lineage.offset(seq) > self.chain.followed[number].watermark:
            self.chain.suspect([number])

    def _on_record(self, subject: bytes, payload: bytes, headers: bytes) -> None:
        self.lines.doubt(self.names.number_of_live(subject.decode()))


def _sequence(headers: bytes) -> int:
    """Where the message is in its stream, as the server that republished it wrote behind the publisher's headers."""
    begin = headers.rindex(_SEQUENCE) + len(_SEQUENCE)
    return int(headers[begin : headers.index(b"\r", begin)])
