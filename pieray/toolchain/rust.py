"""Rust inferlets: rustc for wasm32-unknown-unknown with the SDK's crate, then a component.  No cargo, no network."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pieray.toolchain import component, find

CRATE = Path(__file__).resolve().parents[1] / "sdk" / "rust" / "src" / "lib.rs"
FLAGS = ("--target", "wasm32-unknown-unknown", "--edition", "2021", "-C", "opt-level=s", "-C", "panic=abort")
#: a newer linker warns about the metadata in an older compiler's libraries
LINKING = ("-C", "link-arg=--no-fatal-warnings", "-C", "strip=debuginfo")


def build(entry: Path, target: Path) -> None:
    """Compile the crate root `entry` to the component `target`; raises InvalidRequest, MissingTool."""
    rustc, _ = find.rustc()
    with tempfile.TemporaryDirectory() as folder:
        library, core = Path(folder, "libinferlet.rlib"), Path(folder, "core.wasm")
        crate = ("--crate-type", "rlib", "--crate-name", "inferlet", "-o", library, CRATE)
        flags = (*FLAGS, f"--remap-path-prefix={CRATE.parent}=inferlet", f"--remap-path-prefix={entry.parent}/=")
        find.run("compiling the Rust SDK", rustc, *flags, *crate)
        guest = ("--crate-type", "cdylib", "--crate-name", "guest", "--extern", f"inferlet={library}", "-o", core)
        find.run(f"compiling {entry.name}", rustc, *flags, *LINKING, "-C", f"linker={find.wasm_ld()}", *guest, entry)
        component.wrap(core, target, entry.parent)
