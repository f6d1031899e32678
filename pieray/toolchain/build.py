"""`pieray build`: the component of a folder, from its manifest's entry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pieray.errors import InvalidRequest
from pieray.programs import manifest
from pieray.programs.manifest import Manifest
from pieray.toolchain import c, js, py, rust

Builder = Callable[[Path, Path], None]
BUILDERS: dict[str, Builder] = {"py": py.build, "js": js.build, "c": c.build, "rust": rust.build}


def build(folder: Path) -> Path:
    """Build what `folder`/inferlet.toml declares; the file that is launched.

    Raises ConfigError (the manifest), InvalidRequest (the sources, with what the compiler said), MissingTool.
    """
    declared = declared_in(folder)
    entry, target = folder / declared.entry_file, folder / declared.main_file
    if not declared.language:
        raise InvalidRequest(f"{folder}: {declared.main_file} comes as it is; `entry` would name what it is built from")
    if not entry.is_file():
        raise InvalidRequest(f"{folder}: there is no {declared.entry_file}, the entry that its manifest names")
    target.parent.mkdir(parents=True, exist_ok=True)
    BUILDERS[declared.language](entry.resolve(), target.resolve())
    return target


def declared_in(folder: Path) -> Manifest:
    """The folder's manifest; raises ConfigError, InvalidRequest if there is none."""
    if not (folder / manifest.FILE_NAME).is_file():
        raise InvalidRequest(f"{folder} has no {manifest.FILE_NAME}; `pieray new NAME` makes a folder with one")
    return manifest.of_folder(folder)
