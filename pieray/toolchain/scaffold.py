"""`pieray new`: a small complete project."""

from __future__ import annotations

from pathlib import Path

from pieray.errors import InvalidRequest
from pieray.programs import manifest

TEMPLATES = Path(__file__).resolve().parent / "templates"
_MANIFEST = """\
name = "{name}"
version = "0.1.0"
description = "Continue a prompt, streaming the text"
lang = "{lang}"

[capabilities]
# Denied unless declared: store, messaging, children = true; http = ["api.example.org"]; mcp = ["server"]

[limits]
# Lower than the engine's: pages = 64, wall_time_s = 30
"""
_BUILD = "pieray build {folder}\n    "
_README = """\
# {name}

What it does, in a line.

    {build}pieray run ./{folder} -- --prompt "12+7=" --max-tokens 8

Returns `{{"text", "num_tokens"}}`. `pieray check ./{folder}` tells what it imports and may reach{tests}.
"""


def new(folder: Path, lang: str = "py") -> list[Path]:
    """Write a project in `lang` to `folder`, whose name is the inferlet's; the files.

    Raises InvalidRequest for a name that no inferlet may have and for a folder that is there with anything in it.
    """
    if lang not in manifest.ENTRIES:
        raise InvalidRequest(f"--lang is one of {', '.join(manifest.ENTRIES)}; given {lang!r}")
    name = folder.name
    if not manifest.is_name(name):
        raise InvalidRequest(f"the name of an inferlet is up to 64 letters, digits and . _ -; given {name[:100]!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(f"{folder} is there already; nothing was written")
    texts = {
        manifest.FILE_NAME: _MANIFEST.format(name=name, lang=lang),
        "README.md": _README.format(
            name=name,
            folder=folder.name,
            build="" if lang == "py" else _BUILD.format(folder=folder.name),
            tests="; `pytest` runs its tests" if lang == "py" else "",
        ),
        **{
            path.stem: path.read_text(encoding="utf-8").replace("NAME", name)
            for path in sorted((TEMPLATES / lang).glob("*.txt"))
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
        written.append(folder / file)
    return written
