"""From what a user names to what is launched: embedded inferlets, Python files, wasm components."""

from __future__ import annotations

import dataclasses
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pieray.errors import InvalidRequest, NotFound
from pieray.programs import manifest
from pieray.programs.manifest import Manifest

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
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Limits`, as its manifest declares them: a launch begins with those below the engine's."""
    description: str = ""


def inferlets_folder() -> Path:
    """Where the embedded inferlets lie."""
    from importlib.resources import files

    return Path(str(files("pieray.inferlets")))


def embedded_inferlets() -> dict[str, Manifest]:
    """Manifests of the embedded inferlets, by name."""
    folders = sorted(path.parent for path in inferlets_folder().glob(f"*/{manifest.FILE_NAME}"))
    return {folder.name: manifest.of_folder(folder) for folder in folders}


def embedded(name: str) -> ProgramSource | None:
    """The embedded inferlet of that name; never any other file of this machine."""
    return _from_folder(inferlets_folder() / name) if is_embedded(name) else None


def is_embedded(name: str) -> bool:
    """Whether an embedded inferlet has that name."""
    return manifest.is_name(name) and (inferlets_folder() / name / manifest.FILE_NAME).exists()


def resolve(name_or_file: str) -> ProgramSource:
    """The program behind an embedded inferlet's name, or a path to a .py, .wasm or inferlet folder.

    Raises NotFound with the names there are, InvalidRequest for a file of another kind, or that cannot be read,
    ConfigError for a manifest with a fault.
    """
    try:
        return _resolve(name_or_file)
    except (OSError, ValueError, RuntimeError) as error:  # no text, no TOML, a name with NUL or too long, no home
        raise InvalidRequest(f"{name_or_file[:200]!r} cannot be read as an inferlet: {error}") from error


def _resolve(name_or_file: str) -> ProgramSource:
    if (found := embedded(name_or_file)) is not None:
        return found
    path = Path(name_or_file).expanduser()
    if path.is_dir() and (path / manifest.FILE_NAME).exists():
        return _from_folder(path.resolve())
    if path.is_dir():
        raise InvalidRequest(
            f"the folder {name_or_file!r} has no {manifest.FILE_NAME}, so it is no inferlet; "
            "`pieray new` makes one, and a single .py or .wasm file needs none"
        )
    if not path.is_file():
        names = ", ".join(embedded_inferlets())
        raise NotFound(f"no inferlet and no file is named {name_or_file!r}; embedded inferlets: {names}")
    return _from_file(path)


def _from_folder(folder: Path) -> ProgramSource:
    declared = manifest.of_folder(folder)
    main = folder / declared.main_file
    if declared.language != "py" and not main.exists():
        raise InvalidRequest(f"{main} is not built yet: `pieray build {folder}`")
    return _from_file(main, declared)


def _from_file(path: Path, declared: Manifest | None = None) -> ProgramSource:
    """The program in a file; its manifest is `declared`, or what the file itself declares."""
    if path.suffix == ".py":
        source = read_source(path)
        return of_manifest(declared or manifest.of_source(source, path.name), path, source=source)
    data = path.read_bytes()
    if data[:8] == COMPONENT_MAGIC:
        return of_manifest(declared or Manifest(), path, component=data)
    raise InvalidRequest(f"{path} is neither Python source (.py) nor a WebAssembly component")


def read_source(path: Path) -> str:
    """Python source as Python reads it: a byte order mark is no part of it, and a line may name its encoding.

    Raises InvalidRequest with the file and the reason, OSError.
    """
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (ValueError, SyntaxError) as error:
        raise InvalidRequest(f"{str(path)!r} cannot be read as an inferlet: {error}") from error


def of_manifest(declared: Manifest, path: Path, *, source: str = "", component: bytes = b"") -> ProgramSource:
    """A program with what its manifest declares."""
    return ProgramSource(
        declared.name or path.stem,
        path.name,
        source,
        component,
        declared.version,
        dataclasses.asdict(declared.capabilities),
        declared.limits,
        declared.description,
    )
