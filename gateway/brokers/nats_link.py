"""A connection to one NATS server process, with a deadline for every answer. It never comes back by itself.

nats-py would reconnect below us, and what was written for the old process would reach the new one. So each link is to
one process for good: when it is lost whatever waits for it fails, and `NatsBroker.run` makes another. Its defaults
that do not suit: a ping each 2 minutes, a buffer for publishes while away, `flush()` that overtakes what it is to
confirm (a request does not).
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import AuthorizationError, Error

from gateway.brokers.url import split
from gateway.settings import ConfigError

log = logging.getLogger("ringcast.nats")

CONNECT_WITHIN = 2.0  # seconds
WITHIN = 2.0  # seconds for any answer
PING = 1.0  # seconds between two pings; the third that is not answered ends the link
OWED = 2
PENDING_BYTES = 64 << 20  # of answers not looked at yet; what is beyond is lost, and asked for in vain
HEADERS = 1024  # bytes at most of what we put around a message
BROKEN = (Error, OSError, RuntimeError)  # raised by nats-py, the socket and uvloop where a connection is just ending


Heard = Callable[[bytes, bytes, bytes], None]  # subject, payload, headers as they came, b"" for none


class Away(Exception):
    """The store did not answer, or not in time. What was asked for may have been done all the same."""


class NoStream(Away):
    """Nothing listens on that subject: the stream has no leader now, or does not exist."""


class Refused(Exception):
    """The server does not let us in."""


@dataclass(frozen=True, slots=True)
class Url:
    """nats://[user:password@ or token@]host[:port][,host[:port]...][/?option=value&...]

    Options: `prefix` of all streams and subjects (rc), `replicas` (3 in a cluster, else 1), `storage` (file or
    memory), `creds` (a credentials file), `nkey` (a file with an nkey's seed), `tls_ca`, `tls_cert` and `tls_key` (PEM
    files). tls:// asks for TLS.
    """

    servers: tuple[str, ...]
    prefix: str = "rc"
    replicas: int | None = None
    storage: str = "file"
    creds: str | None = None
    nkey: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @classmethod
    def parse(cls, url: str) -> Url:
        """Raises ConfigError for a URL that cannot work; never shows what may be a password."""
        parts = split(url)
        login, at, hosts = parts.netloc.rpartition("@")
        servers = tuple(f"{parts.scheme}://{login}{at}{host}" for host in hosts.split(","))
        for server in servers:
            try:
                if not urlsplit(server).hostname or urlsplit(server).port == 0:
                    raise ValueError
            except ValueError:
                raise ConfigError("broker: write nats://host:4222, or several hosts with commas between") from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        known = {"prefix", "replicas", "storage", "creds", "nkey", "tls_ca", "tls_cert", "tls_key"}
        for name in options.keys() - known:
            raise ConfigError(f"broker: a nats:// URL has no option {name!r}; it has {', '.join(sorted(known))}")
        prefix, storage = options.pop("prefix", "rc"), options.pop("storage", "file")
        replicas = options.pop("replicas", None)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", prefix):
            raise ConfigError("broker: prefix must be 1 to 32 letters, digits, '_' or '-'")
        if storage not in ("file", "memory"):
            raise ConfigError("broker: storage must be file or memory")
        if replicas not in (None, "1", "3", "5"):
            raise ConfigError("broker: replicas must be 1, 3 or 5")
        return cls(servers, prefix, int(replicas) if replicas else None, storage, **options)

    def context(self) -> ssl.SSLContext | None:
        """What TLS is to trust and to show; None for a server without TLS. Raises ConfigError."""
        if self.tls_ca is None and self.tls_cert is None and not self.servers[0].startswith("tls:"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except OSError as error:
            raise ConfigError(f"broker: a file named by tls_ca, tls_cert or tls_key cannot be used: {error}") from None
        return context


class Connection(Client):
    """nats-py's client, with what it knows of the server, and a short way for what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, Heard] = {}  # by what is subscribed to

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """Pass a message on, at once where its subscription has a plain call for it: then reading waits for that."""
        subscription = self._subs.get(sid)
        heard = None if subscription is None else self.heard.get(subscription.subject)
        if heard is None:
            await super()._process_msg(sid, subject, reply, data, headers)  # type: ignore[arg-type]  # None for none
            return
        try:
            heard(subject, data, headers or b"")
        except Exception:  # or nothing would be read any more
            log.exception("what came on %s could not be passed on", subject.decode(errors="replace"))

    @property
    def server_id(self) -> str:
        """Of the server process: a restarted server has another."""
        return str(self._server_info["server_id"])

    @property
    def clustered(self) -> bool:
        return "cluster" in self._server_info

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """Let go of what was not written yet: nobody waits for it any more once the link has failed.

        nats-py would write it now, which uvloop answers with an exception where the connection is gone; then
        subscriptions went on for ever, and nobody was told that the connection is lost.
        """
        self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    def cut(self) -> None:
        """Drop the connection without waiting for a server that may not answer any more."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


@dataclass(slots=True)
class Answers:
    """Where several answers to one request are collected."""

    ended: asyncio.Future[Msg]
    messages: list[Msg] = field(default_factory=list)


class Link:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.process = connection.server_id[:24]
        self._inbox = connection.new_inbox()
        self._asked = 0
        self._waiting: dict[str, Answers] = {}
        self._lost = False
        self.on_lost: Callable[[], None] = lambda: None

    @classmethod
    async def open(cls, url: Url, server: str) -> Self:
        """Connect to one server. Raises Away, or Refused for credentials it does not accept."""
        connection = Connection()
        link: Self | None = None

        async def on_error(error: Exception) -> None:
            log.debug("nats-py: %s", error or type(error).__name__)

        async def on_disconnect() -> None:
            if link is not None:
                link.fail()

        options: dict[str, Any] = {}
        login = urlsplit(server)
        if login.username is not None and login.password is not None:
            options |= {"user": unquote(login.username), "password": unquote(login.password)}
        elif login.username is not None:
            options["token"] = unquote(login.username)
        if url.creds is not None:
            options["user_credentials"] = url.creds
        if url.nkey is not None:
            options["nkeys_seed"] = url.nkey
        context = url.context()
        if context is not None:
            options["tls"] = context
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                await connection.connect(
                    server, name="ringcast", error_cb=on_error, disconnected_cb=on_disconnect, allow_reconnect=False,
                    max_reconnect_attempts=1, reconnect_time_wait=0, connect_timeout=CONNECT_WITHIN, ping_interval=PING,  # type: ignore[arg-type]
                    max_outstanding_pings=OWED, pending_size=0, skip_subject_validation=True, **options,
                )  # fmt: skip
        except AuthorizationError as error:
            connection.cut()
            raise Refused(str(error)) from error
        except (Error, OSError, TimeoutError) as error:
            connection.cut()
            if "authorization" in str(error).lower() or "authentication" in str(error).lower():
                raise Refused(str(error)) from error
            raise Away(str(error) or type(error).__name__) from error
        link = cls(connection)
        try:
            await connection.subscribe(
                f"{link._inbox}.*", cb=link._on_answer, pending_msgs_limit=0, pending_bytes_limit=PENDING_BYTES
            )
        except BROKEN as error:
            raise Away(str(error) or type(error).__name__) from error
        return link

    @property
    def lost(self) -> bool:
        return self._lost or not self.connection.is_connected

    def peers(self) -> list[str]:
        """Other servers of the cluster that this one told of, as host:port."""
        return [server.netloc.rpartition("@")[2] for server in self.connection.discovered_servers]

    async def _on_answer(self, msg: Msg) -> None:
        answers = self._waiting.get(msg.subject.rpartition(".")[2])
        if answers is None or answers.ended.done():
            return
        answers.messages.append(msg)
        if "Status" in (msg.headers or ()) or not (msg.headers or {}).get("Nats-Num-Pending"):
            answers.ended.set_result(msg)

    async def collect(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, within: float = WITHIN
    ) -> list[Msg]:
        """Ask, and wait for all of the answer: one message, or those of a batch and its end. Raises Away."""
        self._asked += 1
        name = str(self._asked)
        answers = self._waiting[name] = Answers(asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(within):
                await self.send(subject, payload, headers, f"{self._inbox}.{name}")
                last = await answers.ended
        except TimeoutError:
            raise Away(f"no answer within {within:g} s") from None
        finally:
            del self._waiting[name]
        if (last.headers or {}).get("Status") == "503":
            raise NoStream("nothing answers there: JetStream is off, or the stream has no leader now")
        return answers.messages

    async def request(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, within: float = WITHIN
    ) -> Msg:
        return (await self.collect(subject, payload, headers, within))[-1]

    async def send(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, reply: str = ""
    ) -> None:
        """Write a message. What is sent over a link reaches its own server process or none."""
        if self.lost:
            raise Away("the connection is lost")
        try:
            await self.connection.publish(subject, payload, reply, headers)
        except BROKEN as error:
            raise Away(str(error) or type(error).__name__) from error

    async def listen(self, subject: str, heard: Heard) -> Subscription:
        """Subscribe; each message is a plain call, in the order in which all come over the link. Raises Away."""
        self.connection.heard[subject] = heard
        try:
            return await self.connection.subscribe(subject)
        except BROKEN as error:
            raise Away(str(error) or type(error).__name__) from error

    def holds(self, size: int) -> bool:
        """Whether the server takes a message of that many bytes."""
        return size + HEADERS <= self.connection.max_payload

    def fail(self) -> None:
        """The connection is lost: tell whatever waits for an answer, and the owner."""
        if not self._lost:
            self._lost = True
            for answers in self._waiting.values():
                if not answers.ended.done():
                    answers.ended.set_exception(Away("the connection is lost"))
            self.on_lost()

    async def close(self) -> None:
        """Fail what still waits, and let go of the connection."""
        self.fail()
        try:
            async with asyncio.timeout(1):
                await self.connection.close()
        except TimeoutError:
            log.debug("the connection to NATS did not close in good order")
        self.connection.cut()


async def all_of(calls: Iterable[Any]) -> None:
    """Wait for all of these, then raise what the first that failed raised."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
