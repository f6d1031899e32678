"""From wasmtime's error texts to pieray's errors."""

from __future__ import annotations

import re

from pieray.config import Limits
from pieray.errors import ERRORS, WIT_CODES, GuestFailed, GuestTrapped, PierayError, QuotaExceeded

#: by the name under which a guest's SDK raises them: Python's by class, the others' by code
_HANDLER_ERRORS = {name: ERRORS[code] for code in WIT_CODES for name in (ERRORS[code].__name__, code)}
_FRAME = re.compile(r"^\s*\d+:\s+0x[0-9a-f]+ - (?:\S+?!)?(?!<)(\S+)$", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*\d+:\s+")
#: what C runtimes and CPython say on stderr when an allocation was refused, before they abort
_OUT_OF_MEMORY = re.compile(rb"MemoryError|[Oo]ut of memory|memory allocation of \d+ bytes failed")


def trap_error(text: str, limits: Limits, stderr_tail: bytes = b"") -> PierayError:
    """The error for a guest that ended with wasmtime's `text`: its reason and functions, no host paths."""
    reason = trap_reason(text)
    if "too much data is being copied" in reason:
        return QuotaExceeded(f"message_bytes is {limits.message_bytes}; a guest handed over far more ({reason})")
    if "exceeds memory limits" in reason or _OUT_OF_MEMORY.search(stderr_tail):
        return QuotaExceeded(f"memory_bytes is {limits.memory_bytes}; {reason}")
    frames = _FRAME.findall(text)[:3]
    return GuestTrapped(reason + (f" (in {' < '.join(frames)})" if frames else ""))


def trap_reason(text: str) -> str:
    """The last cause in wasmtime's error chain."""
    lines = [line for line in text.partition("Caused by:")[2].splitlines() if line.strip()]
    last = lines[-1] if lines else text.splitlines()[0] if text else "no reason given"
    return _NUMBERED.sub("", last).strip().removeprefix("wasm trap: ")


def failure_error(kind: str, message: str, trace: str, limits: Limits) -> PierayError:
    """The error for a guest that returned a `failure`.

    An error of a handler that the guest did not catch keeps its class; MemoryError is the guest's memory limit at
    work; anything else is GuestFailed.
    """
    if kind == "MemoryError":
        return QuotaExceeded(f"memory_bytes is {limits.memory_bytes}; {kind}: {message}\n{trace}")
    text = f"{message}\n{trace}" if trace else message
    if kind in _HANDLER_ERRORS:
        return _HANDLER_ERRORS[kind](text)
    return GuestFailed(f"{kind}: {text}")
