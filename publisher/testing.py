"""Publishers for an application's tests: they send nothing and keep what was published.

    publisher = RecordingPublisher()
    notify(publisher, order)
    assert [m.event for m in publisher.messages] == ["order.shipped"]

They are the real clients on top of a gateway that is a list in memory, so arguments, receipts and errors are the real
ones. The same tests hold for them and for a real gateway with default settings.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection
from typing import Any

import httpx
import msgspec

from publisher.client import AsyncPublisher, Publisher

_RESERVED = ("jobs", "presence", "ringcast")


class Recorded(msgspec.Struct, frozen=True):
    """A message as a subscriber of its channel would have received it; one for each target."""

    channel: str
    offset: int
    id: str
    event: str
    data: Any
    key: str | None = None
    version: tuple[int, ...] | None = None
    deleted: bool = False
    ttl: float | None = None


class Verb(msgspec.Struct, frozen=True):
    """What was done to a user's connections: `disconnect`, `subscribe` or `unsubscribe`."""

    verb: str
    user: str
    channels: tuple[str, ...] = ()
    revoke_before: float | None = None  # seconds since 1970
    code: str | None = None
    hint: str | None = None


class RecordingPublisher(Publisher):
    """A Publisher that keeps its messages in `messages`, in the order of their offsets, and `verbs` beside them.

    Nobody is ever connected to it.

    `keyed` are the namespaces in which a message may have a key, as `keyed = true` says in a gateway's policy;
    `max_message` is the limit in bytes of a message's data.
    """

    def __init__(self, *, keyed: Collection[str] = (), max_message: int = 64 << 10) -> None:
        self._gateway = _Gateway(keyed, max_message)
        super().__init__("http://recording.invalid", "recording", transport=_Transport(self._gateway))

    @property
    def messages(self) -> list[Recorded]:
        return list(self._gateway.messages)

    @property
    def verbs(self) -> list[Verb]:
        return list(self._gateway.verbs)

    def clear(self) -> None:
        """Forget the messages and verbs; ids and versions stay known, as at a gateway."""
        self._gateway.messages.clear()
        self._gateway.verbs.clear()


class AsyncRecordingPublisher(AsyncPublisher):
    """An AsyncPublisher that keeps its messages; see `RecordingPublisher`."""

    def __init__(self, *, keyed: Collection[str] = (), max_message: int = 64 << 10) -> None:
        self._gateway = _Gateway(keyed, max_message)
        super().__init__("http://recording.invalid", "recording", transport=_AsyncTransport(self._gateway))

    @property
    def messages(self) -> list[Recorded]:
        return list(self._gateway.messages)

    @property
    def verbs(self) -> list[Verb]:
        return list(self._gateway.verbs)

    def clear(self) -> None:
        """Forget the messages and verbs; ids and versions stay known, as at a gateway."""
        self._gateway.messages.clear()
        self._gateway.verbs.clear()


class _Refusal(Exception):
    def __init__(self, code: str, status: int, detail: str) -> None:
        super().__init__(detail)
        self.problem = {"code": code, "status": status, "detail": detail}


class _Item(msgspec.Struct):
    id: str
    data: msgspec.Raw
    event: str = "message"
    channel: str | None = None
    channels: list[str] | None = None
    user: str | None = None
    users: list[str] | None = None
    key: str | None = None
    version: tuple[int, ...] | None = None
    deleted: bool = False
    ttl: float | None = None

    def targets(self) -> list[str]:
        if self.channel is not None:
            return [self.channel]
        if self.user is not None:
            return [f"user:{self.user}"]
        return list(dict.fromkeys(self.channels or [f"user:{user}" for user in self.users or []]))


class _Gateway:
    """The gateway's verb `publish`, as far as a publisher can tell."""

    def __init__(self, keyed: Collection[str], max_message: int) -> None:
        self.messages: list[Recorded] = []
        self.verbs: list[Verb] = []
        self._keyed = keyed
        self._max_message = max_message
        self._ids: dict[tuple[str, str], tuple[bytes, int]] = {}
        self._versions: dict[tuple[str, str], tuple[int, ...]] = {}
        self._top = 0
        self._lock = threading.Lock()

    def answer(self, request: httpx.Request, body: bytes) -> httpx.Response:
        with self._lock:
            verb = request.url.path.removeprefix("/v1/")
            if verb == "connections":
                told = {"user": request.url.params["user"], "total": 0, "connections": [], "unanswered": []}
                return httpx.Response(200, json=told)
            if verb != "publish":
                return self._do(verb, request.headers["idempotency-key"], body)
            if request.headers["content-type"] == "application/json":
                results = self._publish(msgspec.json.decode(body, type=_Item))
                [result, *others] = results
                if "error" in result and not others:
                    return httpx.Response(result["error"]["status"], json=result["error"])
                return httpx.Response(200, json={"results": results})
            lines = [
                msgspec.json.encode({"line": n, "results": self._publish(msgspec.json.decode(line, type=_Item))})
                for n, line in enumerate(body.split(b"\n"), 1)
            ]
            return httpx.Response(200, content=b"\n".join(lines))

    def _do(self, verb: str, id: str, body: bytes) -> httpx.Response:
        done = msgspec.convert({"verb": verb, **msgspec.json.decode(body)}, Verb)
        self._top = max(self._top + 1, time.time_ns() // 1000)
        new = hashlib.sha256(body).digest(), self._top
        known = self._ids.setdefault((f"ringcast:user.{done.user}", id), new)
        if known[1] == self._top:
            self.verbs.append(done)
        channel = "ringcast:revocations" if done.revoke_before is not None else f"ringcast:user.{done.user}"
        receipt = {"channel": channel, "offset": known[1], "id": id, "duplicate": known[1] != self._top}
        return httpx.Response(200, json=receipt)

    def _publish(self, item: _Item) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for channel in item.targets():
            try:
                results.append(self._store(channel, item))
            except _Refusal as refusal:
                results.append({"channel": channel, "error": refusal.problem})
        return results

    def _store(self, channel: str, item: _Item) -> dict[str, Any]:
        namespace = channel.partition(":")[0]
        if namespace in _RESERVED:
            raise _Refusal("reserved_channel", 403, f"only the gateway itself publishes to {namespace}:")
        if item.key is not None and namespace not in self._keyed:
            raise _Refusal("key_not_allowed", 400, f"{namespace}: is not keyed: say keyed=[{namespace!r}]")
        if len(item.data) > self._max_message:
            raise _Refusal("too_large", 413, f"data has {len(item.data)} bytes; {self._max_message} are allowed")
        digest = _digest(item)
        known = self._ids.get((channel, item.id))
        if known is not None and known[0] != digest:
            raise _Refusal("id_reused", 422, f"id {item.id!r} was used with another body")
        if known is not None:
            return {"channel": channel, "offset": known[1], "id": item.id, "duplicate": True}
        if item.key is not None and item.version is not None:
            if item.version <= self._versions.get((channel, item.key), ()):
                raise _Refusal("stale_version", 409, f"key {item.key!r} already holds this version or a newer one")
            self._versions[channel, item.key] = item.version
        self._top = max(self._top + 1, time.time_ns() // 1000)
        self._ids[channel, item.id] = (digest, self._top)
        self.messages.append(Recorded(
            channel, self._top, item.id, item.event, msgspec.json.decode(item.data), item.key, item.version,
            item.deleted, item.ttl,
        ))  # fmt: skip
        return {"channel": channel, "offset": self._top, "id": item.id, "duplicate": False}


def _digest(item: _Item) -> bytes:
    body = msgspec.json.encode((item.event, item.key, item.version, item.deleted, item.ttl, item.data))
    return hashlib.sha256(body).digest()


class _Transport(httpx.BaseTransport):
    def __init__(self, gateway: _Gateway) -> None:
        self._gateway = gateway

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._gateway.answer(request, request.read())


class _AsyncTransport(httpx.AsyncBaseTransport):
    def __init__(self, gateway: _Gateway) -> None:
        self._gateway = gateway

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._gateway.answer(request, await request.aread())
