"""JavaScript inferlets: an ES module and the SDK, with QuickJS in a component (componentize-qjs, 1.7 MB)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pieray.toolchain import component, find
from pieray.wit import WIT_FILE

SDK = Path(__file__).resolve().parents[1] / "sdk" / "js"
SUFFIXES = (".js", ".mjs", ".json")


def build(entry: Path, target: Path) -> None:
    """Make a component of the module `entry`; raises InvalidRequest, MissingTool.

    Modules beside and below it may be imported, and those of its node_modules; `inferlet` is the SDK.
    """
    modules = find.node_modules("componentize-qjs", entry.parent)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        shutil.copytree(entry.parent, root, ignore=_all_but_modules, dirs_exist_ok=True)
        shutil.copytree(SDK, root / "node_modules" / "inferlet", dirs_exist_ok=True)
        find.run(
            f"making a component of {entry.name}",
            find.node(),
            component.HERE / "qjs.mjs",
            modules,
            root / entry.name,
            root,
            WIT_FILE,
            component.WORLD,
            target,
        )


def _all_but_modules(folder: str, names: list[str]) -> list[str]:
    """Of a folder's files, those that no module imports; jco and its kin are no part of an inferlet."""
    return [n for n in names if not Path(folder, n).is_dir() and Path(n).suffix not in SUFFIXES] + [
        n for n in names if n in ("@bytecodealliance", "componentize-qjs", ".git")
    ]
