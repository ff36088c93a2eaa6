"""One try at a batch of messages, for relays: what became of each, with the order of every channel kept.

A relay keeps what it sends until it is acknowledged, so it needs no retries here: it comes back with what is left. The
gateway is asked to keep back what follows a message that may pass later (`?ordered=true`), or the next one of its
channel would be stored before it.

Two relays that send the same messages, because one of them was taken for dead, do no harm either: both send them in
the same order from a point up to which all are stored, so each message's first copy comes behind those before it, and
the gateway drops the others by their ids.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

import httpx
import msgspec

from publisher.client import Endpoint
from publisher.errors import InvalidMessage, PublishError, Refused, TargetsFailed, Unavailable
from publisher.exchange import Exchange, Retry
from publisher.message import Entry, Outcome
from publisher.relay import log

STEP = 10.0  # seconds for connecting, sending, each piece of the answer
WHOLE = 25.0  # seconds for one try, so that a relay that is told to stop ends within the half minute it is often given
MARGIN = 35.0  # seconds that may pass before a try, while others are looked up
MAX_PAGES = 1000  # of a channel's history that are read to find out what is stored

_REFUSALS = {400, 403, 409, 413, 422}  # of a message, whatever is tried; others are about the relay or pass


def trusted(window: float) -> float:
    """For how long after it was sent a message may be sent again without looking whether it is stored (seconds).

    `window` is how long the gateway remembers its id. A try has to end within it, also a slow one.
    """
    return max(0.0, min(window * 0.8, window - WHOLE - MARGIN))


class Fault(Exception):
    """The gateway could not be asked, or refused the relay itself; a later try may go through."""

    def __init__(self, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after  # seconds


@dataclass(slots=True)
class Sent:
    """What became of a batch, by the numbers of its messages; what is in neither is to be sent again, in its order."""

    acknowledged: set[int] = field(default_factory=set)
    duplicates: int = 0  # of these, stored before
    refused: dict[int, Refused] = field(default_factory=dict)
    fault: Fault | None = None  # why there are messages left


class _Held(msgspec.Struct):
    id: str


class _History(msgspec.Struct):
    offset: int
    more: bool
    messages: list[_Held]


_decode_history = msgspec.json.Decoder(_History).decode


class Delivery:
    """A gateway, as a relay uses it. `url` and `key` as for `Publisher`; close it after use."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self._endpoint = Endpoint(url, key, Retry(deadline=WHOLE, timeout=STEP), 1)
        self._http = httpx.AsyncClient(headers=self._endpoint.headers, timeout=STEP)

    async def send(self, batch: Sequence[Entry | InvalidMessage]) -> Sent:
        """Publish them in their order. Never raises what a later try might not."""
        exchange = Exchange(batch, self._endpoint.retry, lines=True)
        sent = Sent()
        if (request := exchange.next()) is not None:
            try:
                async with self._http.stream(
                    "POST", self._endpoint.publish_url, params={"ordered": "true"}, content=request.body,
                    headers=request.headers, timeout=request.timeout,
                ) as response:  # fmt: skip
                    if response.status_code != 200:
                        sent.fault = await _refused(response)
                    exchange.begin(200, response.headers)
                    async for data in response.aiter_bytes():
                        if sent.fault is None:
                            exchange.feed(data)
                    if sent.fault is None:
                        exchange.end()
            except (httpx.RequestError, TimeoutError) as error:
                sent.fault = Fault(str(error) or type(error).__name__)
        exchange.give_up()
        for outcome in exchange.outcomes:
            _sort(outcome, sent)
        return sent

    async def stored(self, channel: str, ids: Collection[str], since: float) -> set[str]:
        """Which of these ids the channel's log holds, from `since` (seconds since 1970) on. Raises Fault.

        None of them where there can be no such channel, or the relay may not read it: waiting would not end.
        """
        found: set[str] = set()
        position = datetime.fromtimestamp(since, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for _ in range(MAX_PAGES):
            try:
                answer = await self._http.get(
                    self._endpoint.url + "/v1/history", params={"channel": channel, "since": position}
                )
            except httpx.RequestError as error:
                raise Fault(str(error) or type(error).__name__) from error
            if answer.status_code in (400, 403):
                log.error("the log of %s cannot be looked into, so what was sent is sent again: %s", ascii(channel),
                          await _refused(answer))  # fmt: skip
                break
            if answer.status_code != 200:
                raise await _refused(answer)
            try:
                page = _decode_history(answer.content)
            except msgspec.DecodeError as error:
                raise Fault("whoever answers is no Ringcast gateway") from error
            found.update(message.id for message in page.messages if message.id in ids)
            if not page.more or len(found) == len(ids):
                break
            position = str(page.offset)
        return found

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _refused(response: httpx.Response) -> Fault:
    """A refusal of the whole request, which is never one of its messages'."""
    body = (await response.aread())[:10_000]
    try:
        problem = msgspec.json.decode(body, type=dict[str, object])
        detail = str(problem.get("detail") or problem.get("title") or body.decode(errors="replace"))
    except msgspec.DecodeError:
        detail = "whoever answers is no Ringcast gateway"
    after = response.headers.get("retry-after", "")
    return Fault(f"HTTP {response.status_code}: {detail}", float(after) if after.isascii() and after.isdigit() else 0.0)


def _sort(outcome: Outcome, sent: Sent) -> None:
    number = outcome.number - 1
    match outcome.error:
        case None:
            sent.acknowledged.add(number)
            sent.duplicates += any(receipt.duplicate for receipt in outcome.receipts)
        case InvalidMessage() as invalid:
            sent.refused[number] = Refused("invalid", 400, str(invalid))
        case TargetsFailed(errors=errors):
            _sort_targets(number, errors, sent)
        case error:
            _sort_targets(number, {"": error}, sent)


def _sort_targets(number: int, errors: Mapping[str, PublishError], sent: Sent) -> None:
    final = [error for error in errors.values() if isinstance(error, Refused) and _final(error)]
    if len(final) == len(errors):
        sent.refused[number] = final[0]
    elif sent.fault is None:
        passing = next(error for error in errors.values() if error not in final)
        after = passing.retry_after if isinstance(passing, Unavailable) else None
        sent.fault = Fault(getattr(passing, "detail", str(passing)), after or 0.0)


def _final(refusal: Refused) -> bool:
    return refusal.status in _REFUSALS and refusal.code != "token_expired"
