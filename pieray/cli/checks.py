"""A finding of `pieray doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `status` is "ok", "warn" (works, but less well) or "fail" (does not work)."""

    status: str
    name: str
    detail: str
    hint: str = ""
