"""JetStream's interface as far as it is needed here, one call for one request, answers typed.

A stream's leader answers all but `batch` and `newest`, which any server that holds a copy may answer, from what it has
so far. Every call raises Away (see `nats_link`) when no answer comes, and ApiError when the server says no.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from nats.aio.msg import Msg

from gateway.brokers.nats_link import WITHIN, Away, Link
from gateway.message import new_id

STREAM_NOT_FOUND, NO_MESSAGE, NAME_IN_USE = 10059, 10037, 10058
WRONG_LAST_SEQUENCE = (10071, 10164)  # the second while another guarded message of that subject is on its way
ROLLUP_NOT_PERMITTED = 10111
IN_PROCESS = 10158  # X
TABLE_LIMIT = 1000  # subjects of one `newest`; the server refuses more than 1,024
SUBJECTS_PAGE = 100_000


class ApiError(Exception):
    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code


class _Error(msgspec.Struct):
    code: int
    description: str = ""
    err_code: int = 0


class Config(msgspec.Struct):
    max_msgs_per_subject: int
    max_age: int  # nanoseconds
    duplicate_window: int = 0
    num_replicas: int = 1
    storage: str = "file"
    first_seq: int = 1
    metadata: dict[str, str] = {}


class State(msgspec.Struct):
    first_seq: int
    last_seq: int
    subjects: dict[str, int] = {}


class Info(msgspec.Struct):
    config: Config
    state: State
    created: str
    total: int = 0  # subjects, where there are more than one page of them


class Stored(msgspec.Struct):
    """A message as its stream holds it."""

    subject: str
    seq: int
    time: str
    data: bytes = b""


class _Found(msgspec.Struct):
    message: Stored


class Ack(msgspec.Struct):
    seq: int
    duplicate: bool = False


class _Refusal(msgspec.Struct):
    error: _Error | None = None


_encode = msgspec.json.Encoder().encode
_refusal = msgspec.json.Decoder(_Refusal).decode
_info = msgspec.json.Decoder(Info).decode
_found = msgspec.json.Decoder(_Found).decode
_ack = msgspec.json.Decoder(Ack).decode


def _said(msg: Msg) -> bytes:
    if b'"error"' in msg.data:
        error = _refusal(msg.data).error
        if error is not None:
            if error.code == 503 or error.err_code == IN_PROCESS:
                raise Away(error.description)
            raise ApiError(error.err_code, error.description)
    return msg.data


class Api:
    def __init__(self, link: Link) -> None:
        self.link = link

    async def _ask(self, verb: str, body: dict[str, Any], within: float = WITHIN) -> bytes:
        return _said(await self.link.request(f"$JS.API.STREAM.{verb}", _encode(body), within=within))

    async def info(self, stream: str, subjects: str, offset: int = 0) -> Info:
        """The stream, with how many messages each subject of a pattern holds."""
        return _info(await self._ask(f"INFO.{stream}", {"subjects_filter": subjects, "offset": offset}))

    async def create(self, config: dict[str, Any]) -> None:
        await self._ask(f"CREATE.{config['name']}", config, within=5 * WITHIN)

    async def update(self, config: dict[str, Any]) -> None:
        await self._ask(f"UPDATE.{config['name']}", config, within=5 * WITHIN)

    async def describe(self, stream: str, name: str, value: str) -> None:
        """Write something into the stream's description, which is kept as long as the stream is."""
        config = msgspec.json.decode(await self._ask(f"INFO.{stream}", {}))["config"]
        config["metadata"] = {**config.get("metadata", {}), name: value}
        await self.update(config)

    async def _get(self, stream: str, which: dict[str, Any]) -> Stored | None:
        try:
            return _found(await self._ask(f"MSG.GET.{stream}", which)).message
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The newest message of a subject or pattern."""
        return await self._get(stream, {"last_by_subj": subject})

    async def first(self, stream: str, subject: str, seq: int = 1) -> Stored | None:
        """The oldest message of a subject or pattern from `seq` on."""
        return await self._get(stream, {"seq": seq, "next_by_subj": subject})

    async def at(self, stream: str, seq: int) -> Stored | None:
        return await self._get(stream, {"seq": seq})

    async def since(self, stream: str, subject: str, time: int) -> Stored | None:
        """The oldest message of a subject or pattern that was stored at or after `time`, microseconds since 1970."""
        began = datetime.fromtimestamp(time / 1_000_000, UTC).isoformat().replace("+00:00", "Z")
        return await self._get(stream, {"start_time": began, "next_by_subj": subject})

    async def batch(self, stream: str, subject: str, seq: int, limit: int, size: int) -> list[Stored]:
        """At most `limit` messages and about `size` bytes from `seq` on."""
        which = {"seq": seq, "next_by_subj": subject, "batch": limit, "max_bytes": size}
        found, _ = await self._direct(stream, which)
        return found

    async def newest(self, stream: str, subjects: Sequence[str], up_to: int = 0) -> tuple[list[Stored], int]:
        """The newest message of each subject, as of the sequence that is answered too (0 when there are none)."""
        which: dict[str, Any] = {"multi_last": list(subjects)}
        if up_to:
            which["up_to_seq"] = up_to
        return await self._direct(stream, which)

    async def _direct(self, stream: str, which: dict[str, Any]) -> tuple[list[Stored], int]:
        found: list[Stored] = []
        for msg in await self.link.collect(f"$JS.API.DIRECT.GET.{stream}", _encode(which)):
            headers = msg.headers or {}
            status = headers.get("Status")
            if status is None:
                seq, time = int(headers["Nats-Sequence"]), headers["Nats-Time-Stamp"]
                found.append(Stored(headers["Nats-Subject"], seq, time, msg.data))
            elif status == "204":
                return found, int(headers.get("Nats-UpTo-Sequence", 0))
            elif status != "404":
                raise ApiError(int(status), headers.get("Description", ""))
        return found, 0

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], within: float = WITHIN) -> Ack:
        return _ack(_said(await self.link.request(subject, payload, headers, within)))

    async def reach(self, subject: str) -> None:
        """Ask a stream's leader along the way that messages take, on which nothing overtakes.

        So its server knows afterwards of what was subscribed to here before, though it is another one of the cluster.
        """
        await self.known(subject, new_id())

    async def known(self, subject: str, message_id: str) -> int | None:
        """The sequence of the message that was stored under this id within the window, if one was.

        Asked by a message that is refused unless it is a repeat: our streams permit no roll-up, and cannot be made to
        (`deny_purge`). A guard would not do: with one replica it is looked at before the id. Nor would
        Nats-Expected-Last-Msg-Id: with three replicas nats-server 2.15 stops the stream for good when it does not fit.
        """
        try:
            ack = await self.publish(subject, b"", {"Nats-Msg-Id": message_id, "Nats-Rollup": "all"})
        except ApiError as error:
            if error.code == ROLLUP_NOT_PERMITTED:
                return None
            raise
        return ack.seq
