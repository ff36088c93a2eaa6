"""The context of a trace as it travels: W3C's `traceparent` (Trace Context, level 2), with no I/O."""

from __future__ import annotations

import re

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


def check_traceparent(text: str | None) -> str | None:
    """The context as version 00 writes it; None where it is malformed, for then a trace begins anew (3.2.2.3, 4.3).

    Of a later version the fields are taken that this one knows.
    """
    match = _FORM.fullmatch(text.strip(" \t")) if text is not None and len(text) < 500 else None
    if match is None:
        return None
    version, trace, span, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return None
    return f"00-{trace}-{span}-{int(flags, 16) & 1:02x}"
