"""Which files of the SDKs are generated from the WIT."""

from __future__ import annotations

from pathlib import Path

from pieray.guest import GUEST_ROOT
from pieray.toolchain import c_header, js_types, python_bindings, rust_bindings
from pieray.wit import api

SDK = Path(__file__).resolve().parents[1] / "sdk"


def files() -> dict[Path, str]:
    """Path -> what it must hold."""
    return {
        SDK / "c" / "pieray.h": c_header.header(api()),
        SDK / "rust" / "src" / "handlers.rs": rust_bindings.handlers(api()),
        SDK / "js" / "handlers.js": js_types.module(api()),
        SDK / "js" / "handlers.d.ts": js_types.types(api()),
        GUEST_ROOT / "inferlet" / "_bindings.py": python_bindings.bindings(api()),
    }
