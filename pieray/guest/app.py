"""Entry of the Python runtime component: the class that componentize-py binds to the world's exports."""

from __future__ import annotations

from componentize_py_types import Err
from wit_world.imports.types import Failure

from inferlet import _stdlib  # type: ignore[import-not-found]  # noqa: F401 - only modules imported here exist in guests
from inferlet._program import ProgramFailed, run_program  # type: ignore[import-not-found]


class WitWorld:
    """Exports of the world `python-runtime`."""

    def run_source(self, source: str, filename: str, input: str) -> str:
        """Run an inferlet given as source; its result as JSON.  Raises Err(Failure)."""
        try:
            return str(run_program(source, filename, input))
        except ProgramFailed as failed:
            raise Err(Failure(failed.kind, failed.message, failed.trace)) from None
