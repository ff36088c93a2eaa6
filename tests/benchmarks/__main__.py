"""All benchmarks in one run, as tables.

    python -m tests.benchmarks [SUBJECT...] [--rounds 5] [--write]

With --write the tables and the plot of docs/performance.md are made anew, of these subjects; the others stay as they
are. Ends with 1 where something was lost, repeated or reordered, and then writes nothing of that subject.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable

from tests.benchmarks import comeback, fanout, growth, idle, latency, parts, publish, reader, report, single, storm
from tests.benchmarks.table import Table

SUBJECTS: dict[str, Callable[[int], Awaitable[list[Table]]]] = {
    "fanout": fanout.tables, "single": single.tables, "growth": growth.tables, "idle": idle.tables,
    "comeback": comeback.tables, "latency": latency.tables, "publish": publish.tables, "reader": reader.tables,
    "storm": storm.tables, "parts": parts.tables,
}  # fmt: skip


async def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--write", action="store_true")
    a = ask.parse_args()
    if unknown := set(a.subjects) - set(SUBJECTS):
        ask.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    print(report.machine(), flush=True)
    failed = False
    for name in a.subjects or SUBJECTS:
        began = time.monotonic()
        try:
            tables = await SUBJECTS[name](a.rounds)
        except Exception:
            traceback.print_exc()
            failed = True
            continue
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = used.ru_utime + used.ru_stime
        print(f"\n{name} took {time.monotonic() - began:.0f} s; {spent:.0f} s of CPU so far", flush=True)
        if a.write:
            report.write(name, tables, list(SUBJECTS))
    return int(failed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no server is left behind
    sys.exit(asyncio.run(main()))
