"""Manifests: what an inferlet says about itself, in `inferlet.toml` or at the top of a single Python file.

    name = "notes"
    version = "0.1.0"
    description = "Keeps notes"

    [capabilities]                  # all are denied unless declared
    store = true
    http = ["api.example.org"]

    [limits]                        # lower than the engine's, for every launch that says nothing else
    pages = 64

A single file has the same text in comments, as script metadata (PEP 723) do:

    # /// inferlet
    # version = "0.1.0"
    # [capabilities]
    # store = true
    # ///
"""

from __future__ import annotations

import io
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pieray.config import Limits
from pieray.errors import ConfigError
from pieray.mapping import from_mapping
from pieray.programs.capabilities import Capabilities

FILE_NAME = "inferlet.toml"
#: entry of each language: the source that `pieray build` begins with
ENTRIES = {"py": "main.py", "js": "main.js", "c": "main.c", "rust": "main.rs"}
_LANGUAGES = {".py": "py", ".js": "js", ".mjs": "js", ".c": "c", ".rs": "rust"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = "(0|[1-9][0-9]{0,8})"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?")
BLOCK, _END = "# /// inferlet", "# ///"
"""The lines around the manifest of a single file."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Who an inferlet is, what it is made of, what it may reach, how much it may use."""

    name: str = ""
    """Letters, digits, ".", "_", "-"; that of its folder or file if it gives none."""
    version: str = ""
    """As semantic versioning has it, "1.2.3" or "1.2.3-rc.1"; "" is none."""
    description: str = ""
    origin: str = ""
    """Where its method comes from: a paper, say."""
    main: str = ""
    """The file that is launched, Python source or a component; "" is main.py, or NAME.wasm in another language."""
    lang: str = ""
    """One of `ENTRIES`; "" is what the suffix of entry or main says."""
    entry: str = ""
    """The source that `main` is built from; "" is main.js and the like, for Python main itself."""
    capabilities: Capabilities = field(default_factory=Capabilities)
    limits: dict[str, Any] = field(default_factory=dict)
    """Fields of `Limits`."""

    def __post_init__(self) -> None:
        if self.name and not is_name(self.name):
            raise ConfigError(
                f"name is up to 64 letters, digits and . _ -, the first a letter or digit; given {self.name[:100]!r}"
            )
        if self.version:
            version_key(self.version)
        if self.lang and self.lang not in ENTRIES:
            raise ConfigError(f"lang is one of {', '.join(ENTRIES)}; given {self.lang!r}")
        for key in ("main", "entry"):
            path = Path(getattr(self, key))
            if path.is_absolute() or ".." in path.parts:
                raise ConfigError(f"{key} is a file below the manifest's folder; given {str(path)!r}")
        from_mapping(Limits, self.limits, "limits.")

    @property
    def language(self) -> str:
        """The language that it is written in; "" for a component that comes as it is."""
        return self.lang or _LANGUAGES.get(Path(self.entry or self.main or "main.py").suffix, "")

    @property
    def main_file(self) -> str:
        """`main`, or what stands for it."""
        return self.main or (self.entry_file if self.language == "py" else f"{self.name or 'main'}.wasm")

    @property
    def entry_file(self) -> str:
        """`entry`, or what stands for it; "" for a component that comes as it is."""
        return self.entry or (self.language == "py" and self.main) or ENTRIES.get(self.language, "")


def is_name(text: str) -> bool:
    """Whether an inferlet may have that name."""
    return _NAME.fullmatch(text) is not None


def is_spec(text: str) -> bool:
    """Whether a text is a bare name, or `name@version`, and not the path of a file."""
    name, at, version = text.partition("@")
    return is_name(name) and Path(name).suffix not in (".wasm", *_LANGUAGES) and (not at or is_version(version))


def is_version(text: str) -> bool:
    """Whether it is a semantic version."""
    return _VERSION.fullmatch(text) is not None and len(text) <= 64


def limits_below(limits: Mapping[str, Any], ceiling: Limits) -> dict[str, float]:
    """Those of a program's own limits that are lower than `ceiling`, the engine's: a launch begins with them."""
    given = from_mapping(Limits, limits, "limits.")
    names = [name.replace("-", "_") for name in limits]
    return {name: getattr(given, name) for name in names if getattr(given, name) < getattr(ceiling, name)}


def version_key(version: str) -> tuple[Any, ...]:
    """Sorts as semantic versions do (semver.org 2.0.0, section 11); raises ConfigError for what is none."""
    found = _VERSION.fullmatch(version)
    if found is None or not is_version(version):
        raise ConfigError(f'version is like "1.2.3" or "1.2.3-rc.1"; given {version[:100]!r}')
    numbers = tuple(int(found[i]) for i in (1, 2, 3))
    if not found[4]:
        return (*numbers, 1, ())
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in found[4].split("."))
    return (*numbers, 0, parts)


def of_folder(folder: Path) -> Manifest:
    """The manifest of `folder`/inferlet.toml; its name is the folder's if it gives none.

    Raises ConfigError naming the file and the key, OSError.
    """
    path = folder / FILE_NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # no TOML, no text
        raise ConfigError(f"{path} cannot be read as an inferlet's manifest: {error}") from None
    return _of_values(values, str(path), folder.name)


def of_source(source: str, filename: str) -> Manifest:
    """The manifest in the `# /// inferlet` block that Python source begins with, or one that declares nothing.

    Before the block there may be comments, but no code and no docstring.

    Raises ConfigError.
    """
    try:
        values = tomllib.loads("\n".join(_block(source)))
    except ValueError as error:
        raise ConfigError(f"{filename}, block `{BLOCK}`: {error}") from None
    for key in ("main", "entry", "lang"):
        if key in values:
            raise ConfigError(f"{filename}, block `{BLOCK}`: {key} has no place here, the file is the inferlet")
    return _of_values(values, filename, Path(filename).stem)


def has_block(source: str) -> bool:
    """Whether Python source begins with a manifest."""
    return BLOCK in _leading_comments(source)


def _leading_comments(source: str) -> Iterator[str]:
    for line in map(str.rstrip, io.StringIO(source)):
        if line and not line.startswith("#"):
            return
        yield line


def _block(source: str) -> list[str]:
    """The lines between `# /// inferlet` and `# ///` among the comments that the source begins with."""
    lines: list[str] = []
    is_inside = is_ended = False
    for line in _leading_comments(source):
        if line == BLOCK:
            if is_inside or is_ended:
                raise ValueError("there are two; one is the most")
            is_inside = True
        elif is_inside and line == _END:
            is_inside, is_ended = False, True
        elif is_inside:
            lines.append(_uncommented(line))
    if is_inside:
        raise ValueError(f"it has no end; a line `{_END}` ends it")
    return lines


def _uncommented(line: str) -> str:
    if line != "#" and not line.startswith("# "):
        raise ValueError(f'each line begins with "# "; given {line[:80]!r}')
    return line[2:]


def _of_values(values: Mapping[str, Any], place: str, name: str) -> Manifest:
    if "name" not in values and is_name(name):
        values = {**values, "name": name}
    try:
        return from_mapping(Manifest, values)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}") from None
