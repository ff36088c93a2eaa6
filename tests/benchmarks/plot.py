"""Draws tables of figures as one SVG: a dot for each median, on a line from the least to the most, on log scales."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape

from tests.benchmarks.table import Table

WIDTH, LEFT, RIGHT, ROW, HEAD = 820, 270, 60, 20, 46  # pixels
OURS, OTHER, GRID, TEXT = "#c2410c", "#475569", "#e2e8f0", "#1e293b"
SHOWN = (
    "Fan-out to 1,000 over WebSocket, a message", "Fan-out to 1,000 over SSE, a message", "To one user at a time",
    "Coming back, ", "An idle connection",
)  # fmt: skip


def plot(tables: Sequence[Table]) -> str:
    """The tables with more than one way whose titles begin with one of SHOWN, below each other."""
    shown = [table for table in tables if table.title.startswith(SHOWN) and len(table.figures) > 1]
    parts, top = [], 10
    for table in shown:
        parts += _panel(table, top)
        top += HEAD + ROW * len(table.figures) + 20
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" font-family="sans-serif"'
            f' font-size="12" fill="{TEXT}">\n<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(parts) + "\n</svg>\n")  # fmt: skip


def _panel(table: Table, top: int) -> list[str]:
    figures = [max(figure, 1e-3) for each in table.figures.values() for figure in each]
    low, high = math.log10(min(figures)) - 0.08, math.log10(max(figures)) + 0.08

    def x(value: float) -> float:
        return LEFT + (math.log10(max(value, 1e-3)) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    bottom = top + HEAD + ROW * len(table.figures)
    parts = [f'<text x="10" y="{top + 14}" font-weight="bold">{escape(table.title)}</text>',
             f'<text x="10" y="{top + 30}" fill="{OTHER}">{escape(table.unit)}, log scale</text>']  # fmt: skip
    marks = (number * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for number in (1, 2, 5))
    parts += [
        f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top + HEAD - 8}" y2="{bottom}" stroke="{GRID}"/>'
        f'<text x="{x(mark):.1f}" y="{top + HEAD - 12}" fill="{OTHER}" font-size="10" text-anchor="middle">{mark:g}'
        "</text>"
        for mark in marks if low <= math.log10(mark) <= high
    ]  # fmt: skip
    for number, (name, each) in enumerate(table.figures.items()):
        y, color = top + HEAD + ROW * number + 8, OURS if name.startswith("ringcast") else OTHER
        median = statistics.median(each)
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end" fill="{color}">{escape(name)}</text>'
                     f'<line x1="{x(min(each)):.1f}" x2="{x(max(each)):.1f}" y1="{y}" y2="{y}" stroke="{color}"'
                     f' stroke-width="2"/><circle cx="{x(median):.1f}" cy="{y}" r="4" fill="{color}"/>'
                     f'<text x="{x(max(each)) + 8:.1f}" y="{y + 4}" fill="{color}">{median:.3g}</text>')  # fmt: skip
    return parts
