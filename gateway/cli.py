"""`ringcast`: serve, publish, listen, route, token, config; `relay` and `verify` are in files of their own.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage or configuration, 130 ended by Ctrl-C. What goes wrong is told in
sentences on stderr; stdout holds results alone. What one command needs is imported when it is run: a node that starts
reads neither the clients nor what draws on terminals.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec

from gateway.message import plain

if TYPE_CHECKING:
    from gateway.settings import Settings

_WHOLE = "this needs more than the base install: pip install 'ringcast[gateway]'"

try:
    import typer

    from gateway.relays import relay_app
    from gateway.verify.command import verify

    if find_spec("rich") is None:  # imported only by what draws
        raise ModuleNotFoundError("rich")
except ModuleNotFoundError:
    print(f"ringcast: {_WHOLE}", file=sys.stderr)
    raise SystemExit(2) from None

app = typer.Typer(
    name="ringcast", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="A realtime notification gateway: publish over HTTP, receive over WebSocket, SSE or polling.",
)  # fmt: skip
config_app = typer.Typer(no_args_is_help=True, help="The settings of a gateway.")
app.add_typer(config_app, name="config")
app.add_typer(relay_app, name="relay")
app.command()(verify)

Url = Annotated[str, typer.Option(envvar="RINGCAST_URL", help="The gateway's address.")]
Config = Annotated[Path | None, typer.Option(help="A TOML file of settings (else RINGCAST_CONFIG).")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for scripts.")]
Key = Annotated[str | None, typer.Option("--api-key", envvar="RINGCAST_API_KEY", help="Better in the environment.")]
Token = Annotated[str | None, typer.Option("--token", envvar="RINGCAST_TOKEN", help="Better in the environment.")]
_HERE = "http://127.0.0.1:8000"


def main() -> None:
    """The command `ringcast`."""
    try:
        app(prog_name="ringcast")
    except OSError as error:  # requests and files have errors of their own: this is stdout, on a full disk for one
        typer.echo(f"ringcast: the output cannot be written: {error.strerror}.", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would try again at its end
        raise SystemExit(2) from None


def _version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(f"ringcast {metadata.version('ringcast')}")
        except metadata.PackageNotFoundError:
            typer.echo("ringcast, from a source tree that is not installed")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version)] = False,
) -> None:
    """What goes before any command."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[str | None, typer.Option(help="0 takes a free one.  [default: 8000]")] = None,
    broker: Annotated[str | None, typer.Option(help="The store's URL.  [default: memory://]")] = None,
    workers: Annotated[str | None, typer.Option(help="Processes on this port, each a node.  [default: 1]")] = None,
    node: Annotated[str | None, typer.Option(help="This node's name.  [default: host and process]")] = None,
    advertise: Annotated[str | None, typer.Option(help="The URL at which clients reach this very node.")] = None,
    drain_wait: Annotated[
        str | None, typer.Option(help="How long to serve as before once told to stop.  [default: 5s]")
    ] = None,
    drain: Annotated[str | None, typer.Option(help="How long all clients have to leave.  [default: 10s]")] = None,
    config: Config = None,
) -> None:
    """Run a gateway. All other settings come from RINGCAST_* variables and the TOML file."""
    settings = _settings(
        config, host=host, port=port, broker=broker, workers=workers, node=node, advertise=advertise,
        drain_wait=drain_wait, drain=drain,
    )  # fmt: skip
    from gateway.server import serve as run
    from gateway.settings import ConfigError

    try:
        code = run(settings)
    except ConfigError as error:
        _fail(str(error), 2)
    raise typer.Exit(code)


@app.command()
def publish(
    channel: Annotated[str, typer.Argument(help="Where to, like user:42 or topic:news.")],
    data: Annotated[str, typer.Argument(metavar="JSON", help="The data; - reads it from stdin.")],
    event: Annotated[str, typer.Option(help="The event's name.")] = "message",
    key: Annotated[str | None, typer.Option(help="The key whose value this is, in a keyed namespace.")] = None,
    id: Annotated[str | None, typer.Option(help="The message's id; a repeat is stored once.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to keep trying.")] = 10.0,
    url: Url = _HERE,
    api_key: Key = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Publish one message and print its receipt once it is stored."""
    from publisher import InvalidMessage, Publisher, PublishError, Refused, Retry

    raw = sys.stdin.buffer.read() if data == "-" else data.encode(errors="surrogateescape")
    try:
        with Publisher(url, api_key or token, retry=Retry(deadline=timeout)) as publisher:
            receipt = publisher.publish(channel, msgspec.Raw(raw), event=event, key=key, id=id)
    except InvalidMessage as error:
        _fail(str(error), 2)
    except Refused as error:
        _fail(f"refused ({error.status} {error.code}): {error}", 1)
    except PublishError as error:
        _fail(f"{url}: {error}", 1)
    except ValueError as error:
        _fail(str(error), 2)
    if as_json:
        typer.echo(msgspec.json.encode(receipt))
    else:
        again = " (a duplicate: it was stored before)" if receipt.duplicate else ""
        typer.echo(f"{receipt.channel} offset={receipt.offset} id={plain(receipt.id)}{again}")


@app.command()
def listen(
    channels: Annotated[
        list[str] | None, typer.Argument(metavar="CHANNEL...", help="On top of the token's own.")
    ] = None,
    transport: Annotated[str, typer.Option(help="ws, sse, poll, or the best that gets through.")] = "auto",
    since: Annotated[str | None, typer.Option(help="earliest, latest, a duration like 5m, or a time.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Continue where this cursor was told.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many messages.")] = None,
    home: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Where else the token may go when nodes name it; --url's host may always."),
    ] = None,
    url: Url = _HERE,
    api_key: Key = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Print messages as they come, one a line, until Ctrl-C; reconnects by itself.

    Where messages may be missing, a reset is printed: on stderr, or with --json as a line of its own. At the end
    stderr tells the cursor that continues from there.
    """
    from gateway import tail
    from gateway.client import Refused, Subscriber

    try:
        subscriber = Subscriber(
            url, token or api_key, channels or (), cursor=cursor, since=since, transport=transport, homes=home or (),
        )  # fmt: skip
    except ValueError as error:
        _fail(str(error), 2)
    if not as_json:
        tail.tell_connections()
    try:
        asyncio.run(tail.tail(subscriber, count, as_json))
    except Refused as error:
        _fail(f"refused: {error}", 1)
    finally:
        if subscriber.cursor is not None:
            typer.echo(f"cursor {subscriber.cursor}", err=True)


@app.command()
def route(
    user: Annotated[str | None, typer.Option(help="The way of what is published to this user.")] = None,
    channel: Annotated[str | None, typer.Option(help="The way of what is published to this channel.")] = None,
    url: Url = _HERE,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Explain where messages go: partition, home node, and how far the node that answers and its sessions are."""
    import httpx

    if (user is None) == (channel is None):
        _fail("name either --user or --channel; --help says more.", 2)
    asked = {"user": user} if channel is None else {"channel": channel}
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(url.rstrip("/") + "/v1/route", params=asked, headers=headers, timeout=10)
        told = msgspec.json.decode(answer.content, type=dict[str, Any])
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        _fail(f"{url}: {error}", 1)
    except msgspec.DecodeError:
        _fail(f"{url}: this is no gateway; it answered {answer.status_code}", 1)
    if answer.status_code != 200:
        _fail(f"refused ({answer.status_code} {told.get('code')}): {told.get('detail')}", 1)
    if as_json:
        typer.echo(answer.content)
        return
    sessions = told.pop("sessions")
    for name, value in told.items():
        typer.echo(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    for session in sessions:
        typer.echo("session " + " ".join(f"{name}={json.dumps(value)}" for name, value in session.items()))


@app.command("token")
def make_token(
    user: Annotated[str, typer.Option(help="Whom it speaks for: its `sub`.")],
    channel: Annotated[list[str] | None, typer.Option(help="What may be read, like topic:news or topic:*.")] = None,
    publish: Annotated[list[str] | None, typer.Option(help="What may be published.")] = None,
    ttl: Annotated[str, typer.Option(help="How long it is good, like 30s, 5m or 24h.")] = "1h",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Print a token (JWT, HS256) made with RINGCAST_JWT_HMAC_KEY, for trying things out."""
    settings = _settings(config)
    if settings.jwt_hmac_key is None:
        _fail("a token is made with the gateway's own secret: set RINGCAST_JWT_HMAC_KEY to it.", 2)
    import jwt

    from gateway.identity import check_patterns, check_subject
    from gateway.settings import seconds

    try:
        lasts = float(seconds(ttl))
        if not 0 < lasts < 1e10:
            raise ValueError(f"--ttl must be more than 0 seconds and less than 300 years, not {ttl!r}")
        claims: dict[str, Any] = {
            "sub": check_subject(user), "iat": int(time.time()), "exp": int(time.time() + lasts),
            "channels": check_patterns("channels", channel), "publish": check_patterns("publish", publish),
            "aud": settings.jwt_audience, "iss": settings.jwt_issuer,
        }  # fmt: skip
    except ValueError as error:
        _fail(str(error), 2)
    token = jwt.encode({name: claim for name, claim in claims.items() if claim}, settings.jwt_hmac_key, "HS256")
    typer.echo(json.dumps({"token": token, "expires": claims["exp"]}) if as_json else token)


@config_app.command("check")
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Print the settings that `serve` would run with, secrets hidden, or what is wrong with them."""
    shown = _shown(_settings(config))
    if as_json:
        typer.echo(json.dumps(shown))
        return
    channels = shown.pop("channels")
    for name, value in shown.items():
        typer.echo(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    for namespace, policy in channels.items():
        typer.echo(f"\n[channels.{namespace}]")
        for name, value in policy.items():
            typer.echo(f"{name} = {json.dumps(value)}")


def _shown(settings: Settings) -> dict[str, Any]:
    """Every setting as JSON has it; durations in seconds, sizes in bytes, of secrets only that they are there."""
    shown = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        if not field.repr and shown[name] and name != "broker":
            shown[name] = ["(hidden)"] * len(shown[name]) if isinstance(shown[name], list) else "(hidden)"
    scheme, _, address = settings.broker.partition("://")
    shown["broker"] = f"{scheme}://{'(hidden)' if address else ''}"  # it may hold a password
    return shown


def _settings(config: Path | None, **flags: Any) -> Settings:
    try:
        from gateway.config import load
        from gateway.settings import ConfigError
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == "gateway":
            raise
        _fail(_WHOLE, 2)
    try:
        return load(config, **flags)
    except ConfigError as error:
        _fail(str(error), 2)


def _fail(sentences: str, code: int) -> NoReturn:
    """End with the exit code, having told why: a sentence a line."""
    for sentence in sentences.splitlines():
        typer.echo(f"ringcast: {sentence.rstrip('.')}.", err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
