"""Publishing into a stream: dedupe, versions, and no message before the stream knows the server process it is on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

from gateway.brokers import nats_format
from gateway.brokers.base import Receipt
from gateway.brokers.nats_api import WRONG_LAST_SEQUENCE, Ack, Api, ApiError, Stored
from gateway.brokers.nats_lines import GUARD, GUARD_SUBJECT, UNREAD, Line, Lines
from gateway.brokers.nats_link import Away
from gateway.brokers.nats_reader import Reader, keys_of
from gateway.errors import Problem
from gateway.message import Draft
from gateway.settings import Settings

AGAIN = 0.02  # seconds before what another publisher was faster with is tried again, growing


class Writer:
    """`ask` tells the store what this node knows of a stream; `known` names the history that it knows it in."""

    def __init__(
        self, settings: Settings, lines: Lines, reader: Reader, ask: Callable[[Api, int], Awaitable[None]],
        known: Callable[[int], str],
    ) -> None:  # fmt: skip
        self.settings = settings
        self.lines = lines
        self.names = lines.names
        self.reader = reader
        self.ask = ask
        self.known = known
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ready(self, api: Api, line: Line) -> None:
        """Before anything is published on another server process, or in a history that this node does not know: tell
        what may be lost, before its place is taken, and have the stream know the process."""
        if line.ready is not api.link or self.known(line.number) not in ("", line.lineage.history):
            await self.ask(api, line.number)
            await self.lines.ready(api, line)

    async def publish(self, api: Api, draft: Draft, id: str) -> tuple[Receipt, str]:
        """Store a message; the receipt and the history that the message is in.

        Raises Away when it may or may not have been stored: asked again with the same `id`, it is stored once.
        """
        line = self.lines[self.names.number(draft.channel)]
        await self.ready(api, line)
        ack = await (self._send(api, line, draft, id, {}) if draft.key is None else self._set(api, line, draft, id))
        if line.records == UNREAD:  # a record came between: this message may lie behind it
            await self.lines.look(api, line)
        offset = line.lineage.offset(ack.seq)
        if ack.duplicate:
            await self._repeated(api, line, draft, ack.seq)
        receipt = Receipt(draft.channel, offset, draft.id, ack.duplicate and draft.idempotent)
        return receipt, line.lineage.history_at(ack.seq)

    def _payload(self, api: Api, line: Line, draft: Draft) -> bytes:
        ttl = None
        if draft.key is not None:
            seconds = self.lines.streams.policies.of(draft.channel).key_ttl if draft.ttl is None else draft.ttl
            longest = self.lines.streams.longest_ttl()
            if seconds > longest:
                raise Problem(
                    "bad_request", f"the ttl is {seconds:g} s, and this store keeps keys for at most {longest:g} s:"
                    " ask for less, or raise the namespace's key_ttl", field="ttl",
                )  # fmt: skip
            ttl = round(seconds * 1000)
        payload = nats_format.encode(draft, line.lineage.history, time.time_ns() // 1_000_000, ttl)
        if not api.link.holds(len(payload)):
            raise Problem("too_large", "the message is larger than the NATS server takes: raise its max_payload")
        return payload

    async def _send(self, api: Api, line: Line, draft: Draft, id: str, guard: dict[str, str]) -> Ack:
        """Publish over a link whose process the stream knows; the link reaches that process or none."""
        subject = self.names.message(line.number, draft.channel, draft.key)
        payload = self._payload(api, line, draft)
        if line.ready is not api.link:
            raise Away("the connection is another one")
        return await api.publish(subject, payload, {"Nats-Msg-Id": id, **guard})

    # ---------------------------------------------------------------- keys

    async def _set(self, api: Api, line: Line, draft: Draft, id: str) -> Ack:
        """Replace a key's value, unless the version is not newer or the channel is full of keys."""
        turn = self._turns.setdefault(draft.channel, asyncio.Lock())
        async with turn:  # what would only get into its own node's way waits here
            attempt = 0
            while True:
                try:
                    return await self._try_to_set(api, line, draft, id)
                except ApiError as error:
                    if error.code not in WRONG_LAST_SEQUENCE:
                        raise
                attempt += 1
                await asyncio.sleep(AGAIN * min(attempt, 5) * random.random())  # noqa: S311

    async def _try_to_set(self, api: Api, line: Line, draft: Draft, id: str) -> Ack:
        subject = self.names.message(line.number, draft.channel, draft.key)
        pattern = self.names.channel(line.number, draft.channel)
        last = await api.last(line.stream, pattern)
        held = last if last is None or last.subject == subject else await api.last(line.stream, subject)
        guard = {GUARD: str(held.seq if held else 0)}
        try:
            self._check_version(line, draft, held)
            if not draft.deleted and not (held and keys_of([held])) and not draft.channel.startswith("ringcast:"):
                await self._check_room(api, line, draft)
                # A new key: nothing of the channel may have changed since its keys were counted.
                guard = {GUARD: str(last.seq if last else 0), GUARD_SUBJECT: pattern}
        except Problem:
            seq = await api.known(subject, id)  # a repeat of what was stored looks stale by now, and is no refusal
            if seq is None:
                raise
            return Ack(seq, duplicate=True)
        return await self._send(api, line, draft, id, guard)

    def _check_version(self, line: Line, draft: Draft, held: Stored | None) -> None:
        if held is None or draft.version is None:
            return
        meta, _ = nats_format.decode(held.data)
        if meta.version is not None and draft.version <= meta.version:
            raise Problem(
                "stale_version",
                f"key {draft.key!r} of {draft.channel} holds version {list(meta.version)}: only a higher one"
                " replaces it",
                current={"offset": line.lineage.offset(held.seq), "version": list(meta.version)},
            )

    async def _check_room(self, api: Api, line: Line, draft: Draft) -> None:
        """Raises Problem `too_many_keys`. Deletions are subjects too: only where it may matter they are told apart."""
        most = self.lines.streams.policies.of(draft.channel).max_keys
        info = await api.info(line.stream, self.names.channel(line.number, draft.channel))
        if len(info.state.subjects) < most:
            return
        live = await self.reader.live_keys(
            api, line, draft.channel, self.names.message(line.number, draft.channel, draft.key)
        )
        if live >= most:
            detail = f"{draft.channel} has as many keys as it may ({live}): delete some, or raise max_keys"
            raise Problem("too_many_keys", detail)

    # ---------------------------------------------------------------- repeats

    async def _repeated(self, api: Api, line: Line, draft: Draft, seq: int) -> None:
        """A repeat: of the same body? And was it announced? A leader that went may have stored it in silence."""
        await api.link.send(f"{self.names.live(line.number)}.!", str(seq).encode())
        if not draft.idempotent:
            return
        first = await api.at(line.stream, seq)
        if first is not None and nats_format.decode(first.data)[0].digest != draft.digest().hex():
            raise Problem(
                "id_reused",
                f"id {draft.id!r} was used for {draft.channel} with another body: a new message needs a new id",
                offset=line.lineage.offset(seq),
            )
