"""Which files of the SDKs are generated from the WIT."""

from __future__ import annotations

from pathlib import Path

from pieray.toolchain import c_header
from pieray.wit import api

SDK = Path(__file__).resolve().parents[1] / "sdk"


def files() -> dict[Path, str]:
    """Path -> what it must hold."""
    return {SDK / "c" / "pieray.h": c_header.header(api())}
