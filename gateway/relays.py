"""`ringcast relay postgres` and `ringcast relay kafka`: what carries messages from another system to the gateway."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, NoReturn, Protocol

import typer

if TYPE_CHECKING:
    from publisher.delivery import Delivery
    from publisher.relay import Progress

relay_app = typer.Typer(no_args_is_help=True, help="Carry messages to the gateway from where a transaction left them.")

Url = Annotated[str, typer.Option(envvar="RINGCAST_URL", help="The gateway's address.")]
Key = Annotated[str | None, typer.Option("--api-key", envvar="RINGCAST_API_KEY", help="Better in the environment.")]
Window = Annotated[str, typer.Option(help="The gateway's idempotency_window.")]
Metrics = Annotated[str | None, typer.Option(metavar="[HOST:]PORT", help="Serve Prometheus metrics here.")]
REPEAT = 30.0  # seconds
_HERE = "http://127.0.0.1:8000"


class Relay(Protocol):
    progress: Progress

    async def run(self, ready: Callable[[], None]) -> None:
        """Carry messages until `stop`; calls `ready` once it has its source."""

    def stop(self) -> None:
        """Finish the batch at hand, then end."""


@relay_app.command()
def postgres(
    dsn: Annotated[str, typer.Option(envvar="RINGCAST_RELAY_POSTGRES", help="A URL or key=value pairs, as libpq has "
                                     "them, which also reads PGHOST, PGUSER ... and ~/.pgpass.")] = "",
    sql: Annotated[bool, typer.Option("--sql", help="Print the migration that makes the outbox, and end.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=5000, help="Rows at a time.")] = 500,
    streams: Annotated[int, typer.Option(min=1, max=16, help="Requests at a time.")] = 4,
    poll: Annotated[str, typer.Option(help="How often to look without being notified.")] = "1s",
    report: Annotated[str, typer.Option(help="How often to log what was done and what waits.")] = "30s",
    window: Window = "5m",
    metrics: Metrics = None,
    url: Url = _HERE,
    api_key: Key = None,
) -> None:  # fmt: skip
    """Publish what `ringcast_publish()` wrote into a PostgreSQL database. Run as many as you like side by side."""
    try:
        import psycopg

        from publisher.outbox import MIGRATION
        from publisher.postgres import Options, PostgresRelay
    except ModuleNotFoundError:
        _fail("this needs psycopg: pip install 'ringcast[postgres]'", 2)
    if sql:
        typer.echo(MIGRATION, nl=False)
        return
    try:
        psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:  # its text would repeat the string, and a password in it
        _fail("--dsn, or RINGCAST_RELAY_POSTGRES, is no connection string: write postgresql://user@host/database", 2)
    options = Options(batch, streams, _seconds("poll", poll), _seconds("report", report), _seconds("window", window))
    try:
        _run(url, api_key, metrics, lambda delivery: PostgresRelay(dsn, delivery, options))
    except psycopg.errors.UndefinedTable:
        _fail("there is no outbox in this database: `ringcast relay postgres --sql | psql` makes one", 1)
    except psycopg.Error as error:
        _fail(str(error).strip(), 1)


@relay_app.command()
def kafka(
    topics: Annotated[list[str], typer.Argument(metavar="TOPIC...", help="What to read.")],
    servers: Annotated[str, typer.Option(envvar="RINGCAST_RELAY_KAFKA", help="HOST:PORT,... to begin with.")] = (
        "localhost:9092"
    ),
    group: Annotated[str, typer.Option(help="The consumer group whose members share the partitions.")] = "ringcast",
    channel: Annotated[str | None, typer.Option(help="Where to, like user:{key} or topic:{topic}; values are the data. "
                                                "Without it each value is a publish.")] = None,
    event: Annotated[str, typer.Option(help="With --channel: the event of records without a header `event`.")] = (
        "message"
    ),
    batch: Annotated[int, typer.Option(min=1, max=500, help="Records at a time.")] = 500,
    streams: Annotated[int, typer.Option(min=1, max=16, help="Requests at a time.")] = 4,
    session: Annotated[str, typer.Option(help="How long a member may be silent before another takes over.")] = "10s",
    report: Annotated[str, typer.Option(help="How often to log what was done and what waits.")] = "30s",
    security: Annotated[str, typer.Option(help="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.")] = "PLAINTEXT",
    ca: Annotated[str | None, typer.Option(help="A file of certificates to trust, instead of the system's.")] = None,
    mechanism: Annotated[str, typer.Option(help="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.")] = "PLAIN",
    user: Annotated[str | None, typer.Option(envvar="RINGCAST_RELAY_KAFKA_USER", help="For SASL.")] = None,
    password: Annotated[str | None, typer.Option(envvar="RINGCAST_RELAY_KAFKA_PASSWORD",
                                                 help="Better in the environment.")] = None,
    window: Window = "5m",
    metrics: Metrics = None,
    url: Url = _HERE,
    api_key: Key = None,
) -> None:  # fmt: skip
    """Publish the records of Kafka topics. Run as many as there are partitions side by side."""
    try:
        from publisher.kafka import Brokers, KafkaRelay, Options
    except ModuleNotFoundError:
        _fail("this needs aiokafka: pip install 'ringcast[kafka]'", 2)
    if security not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
        _fail(f"--security is PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL, not {security!r}", 2)
    try:
        ssl.create_default_context(cafile=ca)
    except OSError as error:
        _fail(f"--ca {ca}: no certificates can be read from it: {error}", 2)
    brokers = Brokers(servers, security, ca, mechanism, user, password)
    options = Options(
        topics, group, channel, event, batch, streams, _seconds("session", session), _seconds("report", report),
        _seconds("window", window),
    )  # fmt: skip
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    _run(url, api_key, metrics, lambda delivery: KafkaRelay(brokers, delivery, options))


def _run(url: str, api_key: str | None, metrics: str | None, make: Callable[[Delivery], Relay]) -> None:
    """Run a relay until SIGTERM or SIGINT, which let it finish the batch at hand."""
    from publisher.delivery import Delivery

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_tell_again)

    async def relay() -> None:
        async with Delivery(url, api_key) as delivery:
            made = make(delivery)
            if metrics is not None:
                _serve_metrics(metrics, made.progress)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, made.stop)
            await made.run(lambda: typer.echo("ringcast relay ready"))

    try:
        asyncio.run(relay())
    except ValueError as error:
        _fail(str(error), 2)


def _tell_again(record: logging.LogRecord) -> bool:
    """Whether to log it: aiokafka says the same at each of its tries, several times a second."""
    if not record.name.startswith("aiokafka"):
        return True
    message, now = record.getMessage(), time.monotonic()
    if now - _told.get(message, -REPEAT) < REPEAT:
        return False
    if len(_told) > 100:
        _told.clear()
    _told[message] = now
    return True


_told: dict[str, float] = {}  # what aiokafka said, and when


def _serve_metrics(address: str, progress: Progress) -> None:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

    class Collected(Collector):
        def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
            yield CounterMetricFamily(
                "ringcast_relay_delivered", "Messages that the gateway acknowledged.", value=progress.delivered)
            yield CounterMetricFamily(
                "ringcast_relay_duplicates", "Of these, stored before by a try whose answer was lost.",
                value=progress.duplicates)
            yield CounterMetricFamily(
                "ringcast_relay_found", "Not sent again, because the channel's log holds them.", value=progress.found)
            refused = CounterMetricFamily(
                "ringcast_relay_refused", "Refused for good and set aside.", labels=["code"])
            for code, count in progress.refused.items():
                refused.add_metric([code], count)
            yield refused
            faults = CounterMetricFamily(
                "ringcast_relay_faults", "Tries that failed, by whose fault.", labels=["side"])
            for side, count in progress.faults.items():
                faults.add_metric([side], count)
            yield faults
            yield GaugeMetricFamily(
                "ringcast_relay_waiting", "Messages that waited when last looked.", value=progress.waiting)
            yield GaugeMetricFamily(
                "ringcast_relay_oldest_seconds", "How long the oldest of them had waited.", value=progress.oldest)
            yield GaugeMetricFamily(
                "ringcast_relay_last_delivery_timestamp_seconds", "When the gateway last acknowledged one.",
                value=progress.last)  # fmt: skip

    host, _, port = address.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"--metrics is a port, or HOST:PORT, not {address!r}")
    registry = CollectorRegistry(auto_describe=True)
    registry.register(Collected())
    try:
        start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry)
    except OSError as error:
        raise ValueError(f"--metrics {address}: {error.strerror}") from error


def _seconds(name: str, text: str) -> float:
    """A duration like 250ms, 30s, 5m or 24h."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)(ms|s|m|h)", text)
    if match is None or float(match[1]) == 0:
        _fail(f"--{name} is a duration like 250ms, 30s or 5m, not {text!r}", 2)
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]


def _fail(sentences: str, code: int) -> NoReturn:
    for sentence in sentences.splitlines():
        typer.echo(f"ringcast: {sentence.rstrip('.')}.", err=True)
    raise typer.Exit(code)
