"""Rust inferlets: rustc for wasm32-unknown-unknown with the SDK's crate, then a component.  No cargo, no network."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pieray.toolchain import component, find

CRATE = Path(__file__).resolve().parents[1] / "sdk" / "rust" / "src" / "lib.rs"
FLAGS = ("--target", "wasm32-unknown-unknown", "--edition", "2021", "-C", "opt-level=s", "-C", "panic=abort")


def build(entry: Path, target: Path) -> None:
    """Compile the crate root `entry` to the component `target`; raises InvalidRequest, MissingTool."""
    rustc, _ = find.rustc()
    with tempfile.TemporaryDirectory() as folder:
        library, core = Path(folder, "libinferlet.rlib"), Path(folder, "core.wasm")
        crate = [rustc, *FLAGS, "--crate-type", "rlib", "--crate-name", "inferlet", "-o", library, CRATE]
        find.run(crate, "compiling the Rust SDK")
        command = [rustc, *FLAGS, "-C", f"linker={find.wasm_ld()}", "-C", "strip=debuginfo", "--crate-type", "cdylib",
                   "--crate-name", "guest", "--extern", f"inferlet={library}", "-o", core, entry]  # fmt: skip
        find.run(command, f"compiling {entry.name}")
        component.wrap(core, target, entry.parent)
