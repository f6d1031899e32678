"""From a core module to a component of the world `inferlet`, by jco's wasm-tools."""

from __future__ import annotations

from pathlib import Path

from pieray.toolchain import find
from pieray.wit import WIT_FILE

HERE = Path(__file__).resolve().parent
WORLD = "inferlet"
JCO = "@bytecodealliance/jco"


def wrap(core: Path, target: Path, near: Path) -> None:
    """Write the component of the core module `core` to `target`; `near` is where node_modules may lie."""
    modules = find.node_modules(JCO, near)
    find.run("making a component", find.node(), HERE / "embed.mjs", modules, core, WIT_FILE, WORLD, target)
