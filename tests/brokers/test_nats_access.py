"""Reaching NATS with a token, an nkey or a credentials file, and with few rights, as docs/brokers.md describes it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped] # it has no annotations
import pytest

from gateway.brokers import open_broker
from gateway.settings import ConfigError
from tests.support.broker_steps import NEWS, draft, follow, publish, read_all
from tests.support.nats import NatsAlone, NatsServer

PAGE = Path(__file__).parents[2] / "docs/brokers.md"
KEYED: dict[str, Any] = {"channels": {"room": {"keyed": True}}, "partitions": 4}


@asynccontextmanager
async def deployed(config: dict[str, Any]) -> AsyncIterator[NatsAlone]:
    alone = NatsAlone()
    alone.servers = [NatsServer(config=config)]
    try:
        await asyncio.to_thread(alone.servers[0].start)
        yield alone
    finally:
        await alone.close()


async def everything(alone: NatsAlone, url: str) -> None:
    """All that a node does with its store."""
    async with alone.node(broker=url, **KEYED) as (broker, watcher):
        await follow(broker, NEWS, "room:1")
        (offset,) = await publish(broker, NEWS)
        once = draft("room:1", id="7", principal="key:a", idempotent=True, key="a", version=(1,))
        assert not (await broker.publish(once)).duplicate
        assert (await broker.publish(once)).duplicate
        await broker.publish(draft("room:1", key="short", ttl=0.1))
        await watcher.until(lambda: any(message.deleted for message in watcher.messages("room:1")))
        await watcher.knows(offset)
        assert (await read_all(broker, NEWS, offset - 1))[0] == [offset]
        assert [message.key for message in (await broker.snapshot("room:1")).messages] == ["a"]
        await broker.check(range(4))
        await broker.unsubscribe([broker.partition(NEWS)])


async def refused(alone: NatsAlone, url: str) -> None:
    with pytest.raises(ConfigError, match="does not let this node in"):
        await open_broker(alone.settings(broker=url)).start()


def made(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))


def public(pair: nkeys.KeyPair) -> str:
    return bytes(pair.public_key).decode()


async def test_the_documented_rights_are_enough() -> None:
    match = re.search(r"```json\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    assert match is not None
    user = {"user": "app", "password": "app", "permissions": json.loads(match[1])}
    accounts = {"APP": {"jetstream": "enabled", "users": [user]}}
    async with deployed({"accounts": accounts, "system_account": None}) as alone:
        await everything(alone, alone.url)
        assert "Violation" not in (alone.servers[0].folder / "log").read_text()


async def test_a_token_lets_in() -> None:
    config = {"accounts": None, "system_account": None, "no_auth_user": None, "authorization": {"token": "s3cret/@"}}
    async with deployed(config) as alone:
        address = f"127.0.0.1:{alone.servers[0].port}"
        await everything(alone, f"nats://s3cret%2F%40@{address}")
        await refused(alone, f"nats://wrong@{address}")


async def test_an_nkey_lets_in(tmp_path: Path) -> None:
    ours, other = made(nkeys.PREFIX_BYTE_USER), made(nkeys.PREFIX_BYTE_USER)
    for name, pair in (("ours", ours), ("other", other)):
        (tmp_path / name).write_bytes(bytes(pair.seed))
    accounts = {"APP": {"jetstream": "enabled", "users": [{"nkey": public(ours)}]}}
    async with deployed({"accounts": accounts, "system_account": None, "no_auth_user": None}) as alone:
        await everything(alone, f"{alone.url}/?nkey={tmp_path / 'ours'}")
        await refused(alone, f"{alone.url}/?nkey={tmp_path / 'other'}")


def token(issuer: nkeys.KeyPair, subject: str, nats: dict[str, Any]) -> str:
    """A JWT as NATS has them, signed by an nkey."""

    def packed(part: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")

    claims = {"iat": int(time.time()), "iss": public(issuer), "sub": subject, "name": "test", "nats": nats}
    claims["jti"] = base64.b32encode(hashlib.sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
    signed = f"{packed({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{packed(claims)}"
    return f"{signed}.{base64.urlsafe_b64encode(issuer.sign(signed.encode())).decode().rstrip('=')}"


async def test_a_credentials_file_lets_in(tmp_path: Path) -> None:
    operator, user = made(nkeys.PREFIX_BYTE_OPERATOR), made(nkeys.PREFIX_BYTE_USER)
    system, account = made(nkeys.PREFIX_BYTE_ACCOUNT), made(nkeys.PREFIX_BYTE_ACCOUNT)
    unlimited = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1}
    stores = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1, "wildcards": True}
    of_account = {"type": "account", "version": 2, "limits": {**unlimited, **stores}}
    config = {
        "accounts": None, "system_account": public(system), "no_auth_user": None, "resolver": "MEMORY",
        "operator": token(operator, public(operator), {"type": "operator", "version": 2}),
        "resolver_preload": {
            public(account): token(operator, public(account), of_account),
            public(system): token(operator, public(system), {"type": "account", "version": 2, "limits": unlimited}),
        },
    }  # fmt: skip
    of_user = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    for name, signer in (("ours", account), ("other", made(nkeys.PREFIX_BYTE_ACCOUNT))):
        (tmp_path / name).write_text(
            f"-----BEGIN NATS USER JWT-----\n{token(signer, public(user), of_user)}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{bytes(user.seed).decode()}\n------END USER NKEY SEED------\n"
        )
    async with deployed(config) as alone:
        await everything(alone, f"{alone.url}/?creds={tmp_path / 'ours'}")
        await refused(alone, f"{alone.url}/?creds={tmp_path / 'other'}")
