"""`ringcast verify`: whether a deployment that is being changed loses anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, NoReturn

import msgspec
import typer

from gateway.verify import TRANSPORTS


def verify(
    url: Annotated[
        list[str] | None,
        typer.Option(envvar="RINGCAST_URL", help="The gateway's address; several share the canaries."),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, max=5000, help="Canaries, over all transports.")] = 40,
    rate: Annotated[float, typer.Option(min=0.1, max=1000, help="Messages a second, all channels together.")] = 20.0,
    for_: Annotated[str, typer.Option("--for", help="How long to publish; until --during has ended at least.")] = "60s",
    during: Annotated[str | None, typer.Option(metavar="COMMAND", help="What to do meanwhile, by the shell.")] = None,
    channel: Annotated[str, typer.Option(help="What the channels' names begin with.")] = "topic:verify",
    transport: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(TRANSPORTS)}; several.  [default: all]")
    ] = None,
    settle: Annotated[str, typer.Option(help="How long a publish, and what is missing at the end, may take.")] = "30s",
    api_key: Annotated[
        str, typer.Option("--api-key", envvar="RINGCAST_API_KEY", help="Better in the environment.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object, and nothing else.")] = False,
) -> None:
    """Show that nothing is lost while something changes: a rollout, a broker that restarts, a node that is killed.

    Canaries on every transport follow channels of their own, to which numbered messages are published. The exit code
    is 0 if everyone got everything, once and in order, with no reset; 1 if not, or if it could not be tried; 2 for
    wrong usage.

    Ctrl-C ends it early, and judges what there was.
    """
    from gateway.settings import seconds
    from gateway.verify import report
    from gateway.verify.trial import NotStarted, Plan, Trial

    try:
        plan = Plan(
            [each.rstrip("/") for each in url or ["http://127.0.0.1:8000"]], api_key, clients, rate,
            float(seconds(for_)), during, channel, transport or TRANSPORTS, float(seconds(settle)),
        )  # fmt: skip
        trial = Trial(plan)
    except ValueError as error:
        _fail(str(error), 2)
    try:
        with asyncio.Runner(loop_factory=_loop()) as runner:
            result = runner.run(report.watched(trial, quiet=as_json))
    except NotStarted as error:
        _fail(str(error), 1)
    typer.echo(msgspec.json.encode(result) if as_json else report.text(result))
    raise typer.Exit(0 if result.ok else 1)


def _loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster loop, where it is installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


def _fail(sentence: str, code: int) -> NoReturn:
    typer.echo(f"ringcast: {sentence.rstrip('.')}.", err=True)
    raise typer.Exit(code)
