"""Writes what was measured into docs/: the figures as JSON, and of all figures there the tables and the plot."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import BUILD
from tests.benchmarks.plot import plot
from tests.benchmarks.table import Goal, Table
from tests.support.gateway import ROOT

DOCS = ROOT / "docs"
FIGURES = DOCS / "performance.json"
BEGIN, END = "<!-- figures: written by `make bench WRITE=1` -->\n", "<!-- end of the figures -->\n"
PACKAGES = ("uvicorn", "uvloop", "starlette", "websockets", "sse-starlette", "python-socketio", "PyJWT", "redis",
            "hiredis", "nats-py", "msgspec")  # fmt: skip
PROGRAMS = {
    "node": ["node", "--version"], "nginx": ["/usr/sbin/nginx", "-v"], "redis-server": ["redis-server", "--version"],
    "nats-server": ["nats-server", "--version"], "centrifugo": ["centrifugo", "version"],
    "caddy of mercure": ["mercure", "version"], "cc": ["cc", "--version"],
    "nchan": ["dpkg-query", "--showformat=${Version}", "--show", "libnginx-mod-nchan"],
}  # fmt: skip


def machine() -> str:
    """Processors, memory, kernel, and how busy they are with something else."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    processor = f"{len(models)} x {models[0]}" if models else platform.machine()
    return (f"{processor}, {memory} GiB of memory, {platform.system()} {platform.release()}, on"
            f" {time.strftime('%Y-%m-%d')}, load before {os.getloadavg()[0]:.1f}")  # fmt: skip


def versions() -> dict[str, str]:
    """Of all that took part and is there."""
    found = {"Python": f"{platform.python_version()} of {sys.base_prefix}"}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    for name, command in PROGRAMS.items():
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            continue
        if number := re.search(r"\d+(\.\d+)+[\w:+.~-]*", said.stdout + said.stderr):
            found[name] = number[0]
    for name in ("ws", "socket.io"):
        package_json = BUILD / "node_modules" / name / "package.json"
        if package_json.exists():
            found[name] = json.loads(package_json.read_text())["version"]
    return found


def write(subject: str, tables: Sequence[Table], order: Sequence[str]) -> None:
    """Put a subject's tables in place of its former ones, and the page and the plot with them."""
    known: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    entry = {"machine": machine(), "versions": versions(), "tables": [asdict(table) for table in tables]}
    known = {name: entry if name == subject else known[name] for name in order if name in known or name == subject}
    FIGURES.write_text(json.dumps(known, indent=1) + "\n")
    page = (DOCS / "performance.md").read_text()
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    (DOCS / "performance.md").write_text(before + BEGIN + "\n".join(_page(known)) + END + after)
    (DOCS / "performance.svg").write_text(plot([table for each in known.values() for table in _tables(each)]))


def _tables(entry: dict[str, Any]) -> list[Table]:
    return [Table(**each | {"goals": [Goal(**goal) for goal in each["goals"]]}) for each in entry["tables"]]


def _page(known: dict[str, Any]) -> list[str]:
    lines = ["", "## Figures to reach", "", "| work | measured | to be | |", "| --- | --- | --- | --- |"]
    for entry in known.values():
        for table in _tables(entry):
            lines += [
                f"| {goal.work} | {goal.found:.3g} | {goal.bound} | {'reached' if goal.reached else '**missed**'} |"
                for goal in table.goals
            ]
    for name, entry in known.items():
        told = ", ".join(f"{package} {number}" for package, number in entry["versions"].items())
        lines += ["", f"## `{name}`", "", f"Measured on {entry['machine']}, with {told}."]
        for table in _tables(entry):
            lines += ["", f"### {table.title}", "", *_table(table)]
            for note in table.notes:
                lines += ["", note]
    return [*lines, ""]


def _table(table: Table) -> list[str]:
    beside = f" beside {table.beside} |" if table.beside else ""
    rounds = max(map(len, table.figures.values()))
    lines = [f"| {table.unit}, {rounds} rounds | median | least | most |{beside}",
             "| --- | --- | --- | --- |" + (" --- |" if table.beside else "")]  # fmt: skip
    for name, median, least, most, ratio in table.rows():
        row = " | ".join(f"{figure:,.4g}" for figure in (median, least, most))
        lines.append(f"| {name} | {row} |" + (f" {ratio:.2f} |" if ratio is not None else ""))
    return lines
