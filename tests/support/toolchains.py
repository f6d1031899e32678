"""Which of the compilers that `pieray build` calls are here: tests that need others are skipped with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from pieray.toolchain import component, find
from pieray.toolchain.find import MissingTool


def missing(language: str) -> str:
    """What a build in `language` ("c", "rust", "js") lacks here, or nothing."""
    package = "componentize-qjs" if language == "js" else component.JCO
    looks = {"c": [find.clang], "rust": [find.rustc, find.wasm_ld], "js": []}[language]
    try:
        for look in (*looks, find.node):
            look()
        find.node_modules(package)
    except MissingTool as error:
        return error.message
    return ""


def needs(language: str) -> None:
    """Skip the test where `language` cannot be built."""
    if reason := missing(language):
        pytest.skip(reason)


def write_project(folder: Path, language: str, source: str) -> Path:
    """A folder with a manifest and an entry."""
    suffix = {"c": "c", "rust": "rs", "js": "js", "py": "py"}[language]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inferlet.toml").write_text(f'name = "guest"\nlang = "{language}"\n')
    (folder / f"main.{suffix}").write_text(source)
    return folder
