"""The component that runs Python inferlets: built once with componentize-py, then kept in the cache.

It holds CPython and the SDK (`pieray/guest`), and takes an inferlet as source text; it does not depend on
any inferlet.  Neither does building it: componentize-py works on the guest sources and the WIT alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pieray.errors import EngineError
from pieray.guest import GUEST_ROOT
from pieray.wasm.cache import cache_folder, scratch, tidy
from pieray.wit import WIT_FOLDER

WORLD = "python-runtime"
APP = "app"
BUILD_TIMEOUT_S = 600.0
#: What `python -m componentize_py` would do, had it a `__main__`.
RUN_TOOL = "import sys; from componentize_py import script; sys.exit(script())"

Progress = Callable[[str], None]


def component_path(progress: Progress | None = None) -> Path:
    """The file of the Python runtime component, from the cache or built now (about 20 s).

    One process builds it; others that ask for it wait.  Raises EngineError with the tool's output if it
    cannot be built.
    """
    sources = _sources()
    path = cache_folder() / f"python-runtime-{_key(sources)}.wasm"
    if path.exists():
        os.utime(path)
        return path
    tell = progress or _nothing
    with _locked(path.with_suffix(".lock"), tell):
        if not path.exists():
            tell("building the Python runtime (once, about 20 s) ...")
            _build(sources, path)
            tidy(path.parent)
            tell(f"built the Python runtime: {path}")
    return path


def _sources() -> dict[str, bytes]:
    """Relative path -> content of all that goes into the component."""
    guest = {str(file.relative_to(GUEST_ROOT)): file for file in [GUEST_ROOT / f"{APP}.py", *_sdk_files()]}
    wit = {f"wit/{file.name}": file for file in WIT_FOLDER.glob("*.wit")}
    return {name: file.read_bytes() for name, file in sorted((guest | wit).items())}


def _sdk_files() -> Iterator[Path]:
    return (path for path in (GUEST_ROOT / "inferlet").rglob("*.py") if path.name != "testing.py")  # for users' tests


def _key(sources: dict[str, bytes]) -> str:
    """Hash of all that the component depends on."""
    digest = hashlib.sha256(_tool_version().encode())
    for name, content in sources.items():
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:24]


def _tool_version() -> str:
    try:
        return importlib.metadata.version("componentize-py")
    except importlib.metadata.PackageNotFoundError:
        raise EngineError("the Python runtime is built with componentize-py: pip install componentize-py") from None


def _build(sources: dict[str, bytes], path: Path) -> None:
    """Build into a scratch folder of the cache, then move the result to `path` at once."""
    with scratch(path.parent, "build-") as root:
        for name, content in sources.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        built = root / "built.wasm"
        _run_tool(root, built)
        os.replace(built, path)


def _run_tool(root: Path, built: Path) -> None:
    """Run componentize-py on the sources in `root`, away from this environment's own packages."""
    site_packages = root / "empty" / "lib" / "site-packages"
    site_packages.mkdir(parents=True)
    command = [sys.executable, "-c", RUN_TOOL, "-q", "-d", str(root / "wit"), "-w", WORLD]
    command += ["componentize", "-p", str(root), "-o", str(built), APP]
    environment = {**os.environ, "VIRTUAL_ENV": str(root / "empty")}
    try:
        done = subprocess.run(  # noqa: S603 - our own command line
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"building the Python runtime took more than {BUILD_TIMEOUT_S:.0f} s") from None
    if done.returncode or not built.exists():
        output = (done.stdout + done.stderr).partition("Stack backtrace:")[0].strip()[-4000:]
        raise EngineError(f"componentize-py failed with status {done.returncode}:\n{output}")


@contextlib.contextmanager
def _locked(path: Path, tell: Progress) -> Iterator[None]:
    """Hold the file lock `path`; it ends with the process, so a crashed builder leaves none behind."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another process to build the Python runtime ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _nothing(text: str) -> None:
    """No progress is asked for."""
