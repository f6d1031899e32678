"""From what a user names to what is launched: embedded inferlets, Python files, wasm components."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pieray.errors import InvalidRequest, NotFound

COMPONENT_MAGIC = b"\0asm\x0d\0\x01\0"


@dataclass(frozen=True, slots=True)
class ProgramSource:
    """An inferlet as it is sent to an engine: exactly one of `source` and `component` is given."""

    name: str
    filename: str
    source: str = ""
    component: bytes = b""
    version: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Capabilities`, as its manifest declares them."""


def inferlets_folder() -> Path:
    """Where the embedded inferlets lie."""
    return Path(str(files("pieray.inferlets")))


def embedded_inferlets() -> dict[str, dict[str, Any]]:
    """Manifests of the embedded inferlets, by name."""
    found = {}
    for manifest in sorted(inferlets_folder().glob("*/inferlet.toml")):
        found[manifest.parent.name] = tomllib.loads(manifest.read_text(encoding="utf-8"))
    return found


def resolve(name_or_file: str) -> ProgramSource:
    """The program behind an embedded inferlet's name, or a path to a .py, .wasm or inferlet folder.

    Raises NotFound with the names there are, InvalidRequest for a file of another kind, or that cannot be read.
    """
    try:
        return _resolve(name_or_file)
    except (OSError, ValueError, RuntimeError) as error:  # no text, no TOML, a name with NUL or too long, no home
        raise InvalidRequest(f"{name_or_file[:200]!r} cannot be read as an inferlet: {error}") from error


def _resolve(name_or_file: str) -> ProgramSource:
    folder = inferlets_folder() / name_or_file
    if "/" not in name_or_file and (folder / "inferlet.toml").exists():
        return _from_folder(folder)
    path = Path(name_or_file).expanduser()
    if path.is_dir() and (path / "inferlet.toml").exists():
        return _from_folder(path.resolve())
    if not path.is_file():
        names = ", ".join(embedded_inferlets())
        raise NotFound(f"no inferlet and no file is named {name_or_file!r}; embedded inferlets: {names}")
    return _from_file(path, path.stem)


def _from_folder(folder: Path) -> ProgramSource:
    manifest = tomllib.loads((folder / "inferlet.toml").read_text(encoding="utf-8"))
    return _from_file(folder / str(manifest.get("main", "main.py")), str(manifest.get("name", folder.name)))


def _from_file(path: Path, name: str) -> ProgramSource:
    if path.suffix == ".py":
        return ProgramSource(name, path.name, source=path.read_text(encoding="utf-8"))
    data = path.read_bytes()
    if data[:8] == COMPONENT_MAGIC:
        return ProgramSource(name, path.name, component=data)
    raise InvalidRequest(f"{path} is neither Python source (.py) nor a WebAssembly component")
