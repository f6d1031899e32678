"""The tools that builds need: where they are, and one clear error if they are not."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pieray.errors import MAX_REPORT, EngineError, InvalidRequest
from pieray.wasm.cache import cache_folder

log = logging.getLogger(__name__)

BUILD_TIMEOUT_S = 300.0
#: versions of clang and lld that are looked for under their Debian names, after the plain ones
LLVM_VERSIONS = range(22, 13, -1)


RUSTC = ("rustc", "/usr/bin/rustc")
"""Debian's comes with the standard library for WebAssembly, and may be behind rustup's on the path."""


class ToolFailed(InvalidRequest):
    """A tool refuses the user's sources; the text is what it printed."""

    max_text = MAX_REPORT


class MissingTool(EngineError):
    """A tool that a build needs is not installed; the text says how it comes."""

    exit_code = 2


def program(names: Sequence[str], variable: str, hint: str) -> str:
    """The first of `names` on the path, or what the environment variable says; raises MissingTool with `hint`."""
    wanted = [os.environ[variable]] if os.environ.get(variable) else names
    for name in wanted:
        if (found := shutil.which(name)) is not None:
            return found
    raise MissingTool(f"{wanted[0]} is not installed: {hint} (or name it in {variable})")


def clang() -> str:
    names = ("clang", *(f"clang-{version}" for version in LLVM_VERSIONS))
    fit = [name for name in names if _makes_wasm(name)]
    return program(fit or ["clang with wasm-ld"], "PIERAY_CLANG", "apt-get install clang-19 lld-19")


def _makes_wasm(name: str) -> bool:
    """Whether this clang is there, with the linker for WebAssembly that it would call."""
    if (found := shutil.which(name)) is None:
        return False
    printed = _quietly([found, "-print-prog-name=wasm-ld"])
    return shutil.which(printed) is not None


def wasm_ld() -> str:
    names = ("wasm-ld", *(f"wasm-ld-{version}" for version in LLVM_VERSIONS))
    return program(names, "PIERAY_WASM_LD", "apt-get install lld-19")


def node() -> str:
    return program(("node",), "PIERAY_NODE", "install Node.js 18 or later")


def node_modules(package: str, near: Path | None = None) -> Path:
    """A folder whose node_modules has `package`; raises MissingTool."""
    own = cache_folder() / "node"
    given = [Path(os.environ["PIERAY_JCO"])] if os.environ.get("PIERAY_JCO") else []
    around = [near.resolve(), *near.resolve().parents] if near is not None else []
    for folder in (*given, *around, Path.cwd(), own):
        if (folder / "node_modules" / package).is_dir():
            return folder.resolve()
    raise MissingTool(
        f"the npm package {package} is not installed: npm install --prefix {own} {package} "
        "(or name a folder whose node_modules has it in PIERAY_JCO)"
    )


def rustc() -> tuple[str, str]:
    """A Rust compiler with the standard library for wasm32-unknown-unknown, and its folder of libraries."""
    hint = "apt-get install rustc libstd-rust-dev-wasm32 lld-19, or rustup target add wasm32-unknown-unknown"
    for name in [os.environ["PIERAY_RUSTC"]] if os.environ.get("PIERAY_RUSTC") else RUSTC:
        if (found := shutil.which(name)) is None:
            continue
        folder = _quietly([found, "--print", "target-libdir", "--target", "wasm32-unknown-unknown"])
        if folder and any(Path(folder).glob("libstd-*.rlib")):
            return found, folder
    raise MissingTool(
        f"no rustc here has the standard library of wasm32-unknown-unknown: {hint} "
        "(or name the compiler in PIERAY_RUSTC)"
    )


def run(what: str, *command: str | Path, cwd: Path | None = None) -> None:
    """Run a tool on the user's sources; raises ToolFailed with what it printed if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(  # noqa: S603 - tools that the user has installed, on the user's own sources
            words,
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BUILD_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise InvalidRequest(f"{what} took more than {BUILD_TIMEOUT_S:.0f} s") from None
    printed = (done.stderr + done.stdout).strip()[-8000:]
    if done.returncode:
        raise ToolFailed(f"{what} failed:\n{printed}")
    if printed:
        log.warning("%s:\n%s", what, printed)


def _quietly(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - asks a compiler about itself
            command, capture_output=True, text=True, timeout=30.0, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
