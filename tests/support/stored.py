"""What is stored and announced, as data: to keep what a release wrote, and to put it into a server of today.

`python -m tests.support.stored 2` writes fixtures of the present formats into `tests/golden`: `redis-2` and `nats-2`.
Those of earlier ones stay as they are, and are never written anew: every release reads what the one before it wrote.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from nats.aio.msg import Msg

from gateway.brokers.base import Broker
from gateway.message import Draft
from tests.support.broker_steps import follow
from tests.support.deployments import Deployment, RedisAlone
from tests.support.nats import NatsAlone

D = TypeVar("D", bound=Deployment)
GOLDEN = Path(__file__).parents[1] / "golden"
SETTINGS: dict[str, Any] = {
    "partitions": 2,
    "channels": {
        "default": {"history_ttl": "7300d"},  # the fixtures grow old
        "room": {"keyed": True, "history_ttl": "7300d", "key_ttl": "7300d"},
        "state": {"keyed": True, "slow": "latest", "history_ttl": "7300d", "key_ttl": "7300d"},
    },
}
DRAFTS = [
    *(Draft("topic:news", "story", b'{"n":%d}' % n, f"n{n}", principal="key:1", idempotent=True) for n in range(3)),
    Draft("topic:\U0001f389a.b>c", "o\u0308dd", '"\u2028"'.encode(), "odd"),
    Draft("room:1", "set", b"1", "r1", key="a", version=(1,)),
    Draft("room:1", "set", b"2", "r2", key="a", version=(2, 7)),
    Draft("room:1", "set", b"3", "r3", key="b", ttl=3600.0),
    Draft("room:1", "set", b"null", "r4", key="b", deleted=True),
    Draft("room:1", "said", b'"hello"', "r5"),
    *(Draft("state:1", "set", b"%d" % n, f"s{n}", key=f"k{n % 2}") for n in range(5)),
]


def text(data: bytes) -> str:
    """Bytes as JSON can hold them, and as a person can read them where they are readable."""
    return data.decode("latin-1")


def raw(text: str) -> bytes:
    return text.encode("latin-1")


# ---------------------------------------------------------------- Redis


def redis_keys(client: Any) -> list[dict[str, Any]]:
    """Every key of a server."""
    found: list[dict[str, Any]] = []
    for name in sorted(client.keys("*")):
        kind = client.type(name).decode()
        value: Any
        if kind == "hash":
            value = {text(field): text(held) for field, held in sorted(client.hgetall(name).items())}
        elif kind == "string":
            value = text(client.get(name))
        elif kind == "zset":
            value = {text(member): score for member, score in client.zrange(name, 0, -1, withscores=True)}
        else:
            value = [
                [text(id), {text(field): text(held) for field, held in entry.items()}]
                for id, entry in client.xrange(name)
            ]
        found.append({"name": text(name), "type": kind, "value": value})
    return found


def load_redis(client: Any, keys: list[dict[str, Any]]) -> None:
    for key in keys:
        name, value = raw(key["name"]), key["value"]
        if key["type"] == "hash":
            client.hset(name, mapping={raw(field): raw(held) for field, held in value.items()})
        elif key["type"] == "string":
            client.set(name, raw(value), ex=600)
        elif key["type"] == "zset":
            client.zadd(name, {raw(member): score for member, score in value.items()})
        else:
            for id, entry in value:
                client.xadd(name, {raw(field): raw(held) for field, held in entry.items()}, id=raw(id))


async def of_redis() -> dict[str, Any]:
    """The keys and the live messages of `DRAFTS`, as this code writes them."""
    async with _opened(RedisAlone()) as store:
        with store.server.client() as client:
            listening: Any = client.pubsub()
            listening.psubscribe("*")
            while listening.get_message(timeout=5) is None:
                pass
            receipts = await _published(store)
            frames: list[list[str]] = []
            while len(frames) < len(DRAFTS):
                message = listening.get_message(timeout=5)
                if message is not None and message["type"] == "pmessage":
                    frames.append([text(message["channel"]), text(message["data"])])
            return {"keys": redis_keys(client), "live": frames, "receipts": receipts}


# ---------------------------------------------------------------- NATS


async def load_nats(store: NatsAlone, streams: list[dict[str, Any]]) -> None:
    async with store.servers[0].client() as client:
        for stream in streams:
            config = stream["config"]
            answer = await client.request(f"$JS.API.STREAM.CREATE.{config['name']}", json.dumps(config).encode())
            assert b'"error"' not in answer.data, answer.data
            for message in stream["messages"]:
                sent = await client.request(message["subject"], raw(message["data"]), headers=message["headers"])
                assert json.loads(sent.data)["seq"] == message["seq"], sent.data


async def of_nats() -> dict[str, Any]:
    """The streams and the live messages of `DRAFTS`, as this code writes them."""
    async with _opened(NatsAlone()) as store, store.servers[0].client() as client:
        heard: list[dict[str, Any]] = []

        async def on_live(msg: Msg) -> None:
            heard.append({"subject": msg.subject, "headers": msg.headers, "data": text(msg.data)})

        await client.subscribe("rc.live.>", cb=on_live)
        await client.flush()
        receipts = await _published(store)
        streams = []
        for name in sorted(json.loads((await client.request("$JS.API.STREAM.NAMES", b"{}")).data)["streams"]):
            info = json.loads((await client.request(f"$JS.API.STREAM.INFO.{name}", b"{}")).data)
            messages = []
            for seq in range(info["state"]["first_seq"], info["state"]["last_seq"] + 1):
                asked = json.dumps({"seq": seq}).encode()
                held = json.loads((await client.request(f"$JS.API.STREAM.MSG.GET.{name}", asked)).data)["message"]
                messages.append({
                    "seq": seq, "subject": held["subject"], "headers": _headers(held.get("hdrs", "")),
                    "data": text(base64.b64decode(held.get("data", ""))),
                })  # fmt: skip
            streams.append({"config": info["config"], "messages": messages})
        return {"streams": streams, "live": heard, "receipts": receipts}


def _headers(encoded: str) -> dict[str, str]:
    """What a message was published with; the guards held then, and are none of what is stored."""
    lines = base64.b64decode(encoded).decode().split("\r\n")[1:]
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name: value.strip() for name, value in pairs if not name.startswith("Nats-Expected")}


# ---------------------------------------------------------------- both


@asynccontextmanager
async def _opened(store: D) -> AsyncIterator[D]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def _published(store: Deployment) -> list[int]:
    async with store.node(**SETTINGS) as (broker, watcher):
        await follow(broker, *{draft.channel for draft in DRAFTS})
        offsets = [(await broker.publish(draft)).offset for draft in DRAFTS]
        for offset in offsets:
            await watcher.knows(offset)
        return offsets


async def held(broker: Broker, channel: str, since: int) -> list[tuple[int, str, bytes]]:
    """What a channel holds above a position, whatever can be shown of it: offset, id and data."""
    page = await broker.read(channel, since, 1000)
    return [(message.offset, message.id, message.data) for message in page.messages]


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def _write(name: str, found: dict[str, Any]) -> None:
    with (GOLDEN / f"{name}.json").open("x") as file:
        file.write(json.dumps(found, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    _write(f"redis-{sys.argv[1]}", asyncio.run(of_redis()))
    _write(f"nats-{sys.argv[1]}", asyncio.run(of_nats()))
