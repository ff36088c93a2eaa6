"""Messages on a terminal, or as lines of JSON: what `ringcast listen` prints."""

from __future__ import annotations

import logging

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from gateway.client import Event, Message, Reset, Subscriber
from gateway.message import plain


async def tail(subscriber: Subscriber, count: int | None, as_json: bool) -> None:
    """Print what comes, `count` messages at most; what is no message goes to stderr, or among them as JSON."""
    out, err = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    left = count
    async with subscriber:
        async for event in subscriber:
            if as_json:
                typer.echo(_as_json(event))
            elif isinstance(event, Message):
                out.print(_line(event))
            else:
                err.print(Text(_notice(event), style="bold yellow"))
            if isinstance(event, Message) and left is not None:
                left -= 1
                if left == 0:
                    return


def tell_connections() -> None:
    """What the client says of its connections goes to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("ringcast.client")
    log.setLevel(logging.INFO)
    log.addHandler(handler)


def _line(message: Message) -> Text:
    line = Text.assemble(
        (f"{message.time.astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-3], "dim"), "  ",
        (message.channel, "cyan"), "  ", (plain(message.event), "bold"),
    )  # fmt: skip
    if message.key is not None:
        line.append(f"  key={plain(message.key)}")
    if message.deleted:
        line.append("  deleted", style="red")
    return line.append(f"  {plain(bytes(message.raw).decode())}")


def _notice(event: Reset | Event) -> str:
    if isinstance(event, Reset):
        return f"reset {event.channel}: messages may be missing here ({event.reason}); going on behind {event.offset}"
    return f"unsubscribed {event.channel}: nothing more comes of it"


def _as_json(event: Event) -> bytes:
    if not isinstance(event, Message):
        return msgspec.json.encode(event)
    time = event.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {
        "type": "message", "channel": event.channel, "offset": event.offset, "id": event.id, "event": event.event,
        "data": event.raw, "time": time, "key": event.key, "version": event.version, "deleted": event.deleted or None,
    }  # fmt: skip
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
