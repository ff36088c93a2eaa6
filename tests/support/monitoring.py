"""What docs/observability.md names."""

from __future__ import annotations

import re

from tests.support.gateway import ROOT

PAGE = (ROOT / "docs" / "observability.md").read_text()
_ROW = re.compile(r"\| `(ringcast_\w+)` \| (counter|gauge|histogram) \|(?:(?: (`[a-z]+`)?) ?\|)?", re.MULTILINE)


def named() -> dict[str, tuple[str, frozenset[str]]]:
    """The metrics of the page's tables: type and labels by name."""
    rows = _ROW.findall(PAGE)
    return {name: (kind, frozenset([label.strip("`")] if label else [])) for name, kind, label in rows}
