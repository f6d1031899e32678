"""W3C trace context, as far as launches carry it: `00-TRACE-SPAN-01`."""

from __future__ import annotations

import re
import secrets

from pieray.errors import InvalidRequest

_FORM = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def new_traceparent() -> str:
    """Of a trace that nobody has begun."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def checked_traceparent(text: str) -> str:
    """It, or "" for none.  Raises InvalidRequest."""
    if text and (_FORM.fullmatch(text) is None or set(text[3:35]) == {"0"}):
        raise InvalidRequest(f"a traceparent is 00-TRACE-SPAN-01, lower-case hex digits; given {text[:100]!r}")
    return text
