"""Publishing to a Ringcast gateway over HTTP: `Publisher` blocks, `AsyncPublisher` awaits; else they are the same."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypedDict, Unpack, overload

import httpx

from publisher import verbs
from publisher.errors import InvalidMessage
from publisher.exchange import Exchange, Retry
from publisher.message import Entry, Message, Outcome, Receipt, prepare
from publisher.verbs import Answer

Given = Message | Mapping[str, Any]  # a message, or its fields
CHUNK_BYTES = 1 << 20  # a request of publish_many is sent when it holds this much, or `chunk` messages


class Options(TypedDict, total=False):
    """What may go with a message; see `Message`."""

    event: str
    key: str | None
    version: Sequence[int] | None
    deleted: bool
    ttl: float | None
    id: str | None


class Endpoint:
    """What both clients know: where to publish, with which key, and how long to try."""

    def __init__(self, url: str | None, key: str | None, retry: Retry, chunk: int) -> None:
        url = url or os.environ.get("RINGCAST_URL")
        if not url:
            raise ValueError("say where the gateway is: give a url, or set RINGCAST_URL to one like http://127.0.0.1:8000")
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is not a URL: {error}") from error
        if parsed.userinfo:
            raise ValueError("the gateway's URL must not hold a password: the key goes in `key` or RINGCAST_API_KEY")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
            raise ValueError(f"the gateway's URL must look like https://host[:port][/path], not {url!r}")
        if chunk < 1:
            raise ValueError("chunk must be at least 1")
        key = key or os.environ.get("RINGCAST_API_KEY")
        if key and not (key.isascii() and key.isprintable()):
            raise ValueError("the API key holds characters that no HTTP header can carry")
        self.url = str(parsed).rstrip("/")
        self.publish_url = self.url + "/v1/publish"
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.retry = retry
        self.chunk = chunk


class _Chunks:
    """Gathers the messages of publish_many into requests, and numbers them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._entries: list[Entry | InvalidMessage] = []
        self._bytes = 0
        self._first = 1

    def add(self, item: Given) -> bool:
        """Take one more; tells whether it is time for `take`."""
        try:
            entry = prepare(item)
        except InvalidMessage as error:
            self._entries.append(error)
        else:
            self._entries.append(entry)
            self._bytes += len(entry.body)
        return len(self._entries) >= self._endpoint.chunk or self._bytes >= CHUNK_BYTES

    def take(self) -> Exchange:
        exchange = Exchange(self._entries, self._endpoint.retry, first=self._first)
        self._first += len(self._entries)
        self._entries, self._bytes = [], 0
        return exchange


class Publisher:
    """A blocking client; safe to share between threads. Use it as a context manager, or `close` it.

    `url` (else RINGCAST_URL) is the gateway's address, `key` (else RINGCAST_API_KEY) an API key or a token that grants
    publishing. `retry` says how long to try; `chunk` is how many messages a request of `publish_many` carries;
    `transport` is httpx's, for tests and unusual networks.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, retry: Retry = Retry(), chunk: int = 500,  # noqa: B008 - frozen
        transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._endpoint = Endpoint(url, key, retry, chunk)
        self._http = httpx.Client(headers=self._endpoint.headers, transport=transport)

    @overload
    def publish(self, channel: str, data: Any = ..., **more: Unpack[Options]) -> Receipt: ...
    @overload
    def publish(self, *, user: str, data: Any = ..., **more: Unpack[Options]) -> Receipt: ...
    @overload
    def publish(self, *, channels: Sequence[str], data: Any = ..., **more: Unpack[Options]) -> list[Receipt]: ...
    @overload
    def publish(self, *, users: Sequence[str], data: Any = ..., **more: Unpack[Options]) -> list[Receipt]: ...
    def publish(
        self, channel: str | None = None, data: Any = None, *, channels: Sequence[str] | None = None,
        user: str | None = None, users: Sequence[str] | None = None, event: str = "message", key: str | None = None,
        version: Sequence[int] | None = None, deleted: bool = False, ttl: float | None = None, id: str | None = None,
    ) -> Receipt | list[Receipt]:  # fmt: skip
        """Publish one message and return when it is stored; a list of receipts for `channels` and `users`.

        The arguments are those of `Message`. Tries again, always under the same id, on 429, 5xx and network failures
        until `retry.deadline`. Raises InvalidMessage (nothing sent), Refused, Unavailable (maybe stored), or, for
        several targets of which some are stored and some are not, TargetsFailed.
        """
        message = Message(
            channel=channel, channels=channels, user=user, users=users, event=event, data=data, key=key,
            version=version, deleted=deleted, ttl=ttl, id=id,
        )  # fmt: skip
        entry = prepare(message)
        [outcome] = self._run(Exchange([entry], self._endpoint.retry))
        return _unpack(outcome, entry)

    def publish_many(self, messages: Iterable[Given]) -> Iterator[Outcome]:
        """Publish a stream of messages; yields what became of each, in their order, as their requests are answered.

        Takes from `messages` only as much as one request holds, so it may be endless. A message that fails does so
        alone, as its outcome's `error`, and the rest goes on. Within a request, one that had to be tried again is
        stored behind those that went through.
        """
        chunks = _Chunks(self._endpoint)
        for message in messages:
            if chunks.add(message):
                yield from self._run(chunks.take())
        yield from self._run(chunks.take())

    def disconnect(
        self, user: str, *, revoke_before: float | datetime | None = None, code: str | None = None,
        hint: str | None = None, id: str | None = None,
    ) -> Receipt:  # fmt: skip
        """End a user's connections on every node, or, with `revoke_before`, those whose tokens were issued before it.

        Such tokens are refused from then on, for the gateway's `revocation_ttl`. The moment is an aware datetime or
        seconds since 1970; in whole seconds where the tokens' `iat` is. Otherwise `code` says what the connections end
        with: `unauthorised` (the default) and `forbidden` do not come back, `token_expired` gets a new token first,
        `unavailable` just comes back; `hint` is a line for a person. Raises InvalidMessage, Refused, Unavailable.
        """
        return self._call(verbs.disconnect(self._endpoint.retry, user, revoke_before, code, hint, id))

    def subscribe(self, user: str, channels: Sequence[str], *, id: str | None = None) -> Receipt:
        """Subscribe what a user has connected now to channels, for as long as those connections last.

        Raises InvalidMessage, Refused, Unavailable.
        """
        return self._call(verbs.subscription(self._endpoint.retry, "subscribe", user, channels, id))

    def unsubscribe(self, user: str, channels: Sequence[str], *, id: str | None = None) -> Receipt:
        """Unsubscribe what a user has connected now from channels; see `subscribe`."""
        return self._call(verbs.subscription(self._endpoint.retry, "unsubscribe", user, channels, id))

    def connections(self, user: str) -> verbs.Connections:
        """A user's connections on every node, and the nodes that did not answer within a second.

        Raises Refused, Unavailable.
        """
        return self._call(verbs.connections(self._endpoint.retry, user))

    def _call(self, call: verbs.Call[Answer]) -> Answer:
        while (request := call.next()) is not None:
            if request.delay:
                time.sleep(request.delay)
            try:
                response = self._http.request(
                    call.method, self._endpoint.url + call.path, params=call.query, content=request.body,
                    headers=request.headers, timeout=request.timeout,
                )  # fmt: skip
                call.answered(response.status_code, response.headers, response.content)
            except httpx.RequestError as error:
                call.cut(error)
        return call.result()

    def _run(self, exchange: Exchange) -> list[Outcome]:
        while (request := exchange.next()) is not None:
            if request.delay:
                time.sleep(request.delay)
            try:
                with self._http.stream(
                    "POST", self._endpoint.publish_url, content=request.body, headers=request.headers,
                    timeout=request.timeout,
                ) as response:  # fmt: skip
                    exchange.begin(response.status_code, response.headers)
                    for data in response.iter_bytes():
                        exchange.feed(data)
                    exchange.end()
            except (httpx.RequestError, TimeoutError) as error:
                exchange.cut(error)
        return exchange.outcomes

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._endpoint.url}>"


class AsyncPublisher:
    """`Publisher` for asyncio: the same arguments, awaited."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, retry: Retry = Retry(), chunk: int = 500,  # noqa: B008 - frozen
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._endpoint = Endpoint(url, key, retry, chunk)
        self._http = httpx.AsyncClient(headers=self._endpoint.headers, transport=transport)

    @overload
    async def publish(self, channel: str, data: Any = ..., **more: Unpack[Options]) -> Receipt: ...
    @overload
    async def publish(self, *, user: str, data: Any = ..., **more: Unpack[Options]) -> Receipt: ...
    @overload
    async def publish(self, *, channels: Sequence[str], data: Any = ..., **more: Unpack[Options]) -> list[Receipt]: ...
    @overload
    async def publish(self, *, users: Sequence[str], data: Any = ..., **more: Unpack[Options]) -> list[Receipt]: ...
    async def publish(
        self, channel: str | None = None, data: Any = None, *, channels: Sequence[str] | None = None,
        user: str | None = None, users: Sequence[str] | None = None, event: str = "message", key: str | None = None,
        version: Sequence[int] | None = None, deleted: bool = False, ttl: float | None = None, id: str | None = None,
    ) -> Receipt | list[Receipt]:  # fmt: skip
        """Publish one message and return when it is stored; see `Publisher.publish`."""
        message = Message(
            channel=channel, channels=channels, user=user, users=users, event=event, data=data, key=key,
            version=version, deleted=deleted, ttl=ttl, id=id,
        )  # fmt: skip
        entry = prepare(message)
        [outcome] = await self._run(Exchange([entry], self._endpoint.retry))
        return _unpack(outcome, entry)

    async def publish_many(
        self, messages: Iterable[Given] | AsyncIterable[Given]
    ) -> AsyncIterator[Outcome]:
        """Publish a stream of messages, async or not; see `Publisher.publish_many`."""
        chunks = _Chunks(self._endpoint)
        async for message in _each(messages):
            if chunks.add(message):
                for outcome in await self._run(chunks.take()):
                    yield outcome
        for outcome in await self._run(chunks.take()):
            yield outcome

    async def disconnect(
        self, user: str, *, revoke_before: float | datetime | None = None, code: str | None = None,
        hint: str | None = None, id: str | None = None,
    ) -> Receipt:  # fmt: skip
        """End a user's connections on every node, or revoke their tokens; see `Publisher.disconnect`."""
        return await self._call(verbs.disconnect(self._endpoint.retry, user, revoke_before, code, hint, id))

    async def subscribe(self, user: str, channels: Sequence[str], *, id: str | None = None) -> Receipt:
        """Subscribe what a user has connected now to channels; see `Publisher.subscribe`."""
        return await self._call(verbs.subscription(self._endpoint.retry, "subscribe", user, channels, id))

    async def unsubscribe(self, user: str, channels: Sequence[str], *, id: str | None = None) -> Receipt:
        """Unsubscribe what a user has connected now from channels; see `Publisher.subscribe`."""
        return await self._call(verbs.subscription(self._endpoint.retry, "unsubscribe", user, channels, id))

    async def connections(self, user: str) -> verbs.Connections:
        """A user's connections on every node; see `Publisher.connections`."""
        return await self._call(verbs.connections(self._endpoint.retry, user))

    async def _call(self, call: verbs.Call[Answer]) -> Answer:
        while (request := call.next()) is not None:
            if request.delay:
                await asyncio.sleep(request.delay)
            try:
                response = await self._http.request(
                    call.method, self._endpoint.url + call.path, params=call.query, content=request.body,
                    headers=request.headers, timeout=request.timeout,
                )  # fmt: skip
                call.answered(response.status_code, response.headers, response.content)
            except httpx.RequestError as error:
                call.cut(error)
        return call.result()

    async def _run(self, exchange: Exchange) -> list[Outcome]:
        while (request := exchange.next()) is not None:
            if request.delay:
                await asyncio.sleep(request.delay)
            try:
                async with self._http.stream(
                    "POST", self._endpoint.publish_url, content=request.body, headers=request.headers,
                    timeout=request.timeout,
                ) as response:  # fmt: skip
                    exchange.begin(response.status_code, response.headers)
                    async for data in response.aiter_bytes():
                        exchange.feed(data)
                    exchange.end()
            except (httpx.RequestError, TimeoutError) as error:
                exchange.cut(error)
        return exchange.outcomes

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._endpoint.url}>"


def _unpack(outcome: Outcome, entry: Entry) -> Receipt | list[Receipt]:
    if outcome.error is not None:
        raise outcome.error
    return outcome.receipt if entry.single else outcome.receipts


async def _each(items: Iterable[Given] | AsyncIterable[Given]) -> AsyncIterator[Given]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
