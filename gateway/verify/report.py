"""A trial on a terminal: a table while it runs, plain lines where nobody watches, and the result at the end."""

from __future__ import annotations

import asyncio
import signal
import time

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.verify.result import Result, Spread, spread
from gateway.verify.trial import Trial

REFRESH = 0.5  # seconds between two looks at the table
LINE_EVERY = 5.0  # seconds between two lines where stdout is no terminal


async def watched(trial: Trial, quiet: bool) -> Result:
    """Run the trial and tell how it stands meanwhile, unless `quiet`; the first signal ends it early."""
    running = asyncio.create_task(trial.run())
    began = time.monotonic()

    def interrupted() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)  # the next one ends it for good
        trial.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    console = Console()
    if quiet:
        pass
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not running.done():
                live.update(table(trial, time.monotonic() - began), refresh=True)
                await asyncio.wait([running], timeout=REFRESH)
    else:
        while not (await asyncio.wait([running], timeout=LINE_EVERY))[0]:
            typer.echo(line(trial, time.monotonic() - began))
    return await running


def table(trial: Trial, seconds: float) -> Group:
    """How the trial stands."""
    shown = Table(box=None, pad_edge=False)
    for name in ("transport", "canaries", "connected", "delivered", "twice", "out of order", "resets", "came back",
                 "goodbyes", "broken", "away p50", "away p99"):  # fmt: skip
        shown.add_column(name, justify="left" if name == "transport" else "right")
    for tally in trial.tallies.values():
        away = spread(tally.away)
        shown.add_row(
            tally.transport, *map(str, (
                tally.canaries, tally.connected, tally.deliveries, tally.duplicated, tally.reordered, tally.resets,
                len(tally.resumes), tally.goodbyes, tally.broken.total(),
            )), f"{away.p50:.3f} s", f"{away.p99:.3f} s",
        )  # fmt: skip
    return Group(Text(line(trial, seconds), style="bold"), shown)


def line(trial: Trial, seconds: float) -> str:
    """The same in one line."""
    tallies, ledger = trial.tallies.values(), trial.ledger
    connected, canaries = sum(tally.connected for tally in tallies), sum(tally.canaries for tally in tallies)
    return (
        f"{seconds:5.1f} s  {trial.phase}: {connected} of {canaries} connected, {len(ledger.tried)} published, "
        f"{ledger.published} acknowledged, {ledger.deliveries} delivered"
    )


def text(result: Result) -> str:
    """The result, a line for each of its parts; the last says whether all is well."""
    canaries = ", ".join(f"{count} {transport}" for transport, count in result.canaries.items())
    nodes = ", ".join(f"{node} {count}" for node, count in result.reconnects_per_second.items()) or "none"
    lines = [
        f"canaries      {canaries}; {result.seconds:g} s",
        f"messages      {result.published} published, {result.acknowledged} acknowledged, {result.delivered} delivered",
        f"lost          {result.lost}, unannounced {result.unannounced}, resets told {result.resets}",
        f"twice         {result.duplicated}; out of order {result.reordered}; "
        f"repeated to bare EventSources as promised {result.repeated}",
        f"connections   {result.reconnects} came back, {result.goodbyes} ended by a goodbye, "
        f"{sum(result.broken.values())} without, "
        f"{sum(result.failed_attempts.values())} attempts failed",
        f"resume        {_spread(result.resume)}",
        f"away          {_spread(result.away)}",
        f"back within 1 s, at most: {nodes}",
    ]
    lines += [f"without       {count} times: {reason}" for reason, count in result.broken.items()]
    lines += [f"failed        {count} times: {reason}" for reason, count in result.failed_attempts.items()]
    lines += [f"fault         {fault}" for fault in result.faults]
    return "\n".join([*lines, "ok" if result.ok else "NOT OK: " + "; ".join(result.complaints())])


def _spread(found: Spread) -> str:
    return f"p50 {found.p50:.3f} s, p99 {found.p99:.3f} s, at most {found.most:.3f} s"
