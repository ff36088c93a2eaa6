"""The span that is current in the application, for those who use OpenTelemetry: nothing of it is loaded here."""

from __future__ import annotations

import sys


def trace_headers() -> dict[str, str]:
    """`traceparent` (W3C Trace Context) of the current span; empty where there is none, or no OpenTelemetry."""
    # Who has not imported it has no span; nor has anyone yet where another thread is just importing it.
    current = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current is None:
        return {}
    context = current().get_span_context()
    if not context.is_valid:
        return {}
    return {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"}
