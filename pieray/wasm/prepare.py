"""What is built once on a machine before the first inferlet runs, with a line of progress for each slow step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pieray.wasm import python_runtime
from pieray.wasm.compiler import CompileLimits, compiled, is_compiled


def prepare_python_runtime(progress: Callable[[str], None] | None = None) -> Path:
    """Build and compile the Python runtime unless the cache has it; returns the component.

    About 30 s of one core the first time, milliseconds later.  Raises EngineError with the builder's output.
    """
    path = python_runtime.component_path(progress)
    component = path.read_bytes()
    if progress is not None and not is_compiled(component):
        progress("compiling the Python runtime (once, about 10 s) ...")
    compiled(component, "python-runtime", CompileLimits())
    return path
