"""C inferlets: clang for wasm32 without any library, then a component."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pieray.toolchain import component, find

HEADERS = Path(__file__).resolve().parents[1] / "sdk" / "c"
FLAGS = (
    "--target=wasm32",
    "-std=c2x",
    "-O2",
    "-Wall",
    "-Wno-unused-function",
    "-nostdlib",
    "-fno-builtin",
    "-Wl,--no-entry",
    "-Wl,--strip-debug",
    "-Wl,--stack-first",
    "-Wl,-z,stack-size=65536",
)
"""Names of functions are kept: a trap tells them."""


def build(entry: Path, target: Path) -> None:
    """Compile the source file `entry` to the component `target`; raises InvalidRequest, MissingTool."""
    with tempfile.TemporaryDirectory() as folder:
        core = Path(folder, "core.wasm")
        arguments = (*FLAGS, f"-I{HEADERS}", "-o", core, entry.name)
        find.run(f"compiling {entry.name}", find.clang(), *arguments, cwd=entry.parent)
        component.wrap(core, target, entry.parent)
