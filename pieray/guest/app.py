"""Entry of the Python runtime component: the class that componentize-py binds to the world's exports."""

from __future__ import annotations

import gc

from componentize_py_types import Err
from wit_world.imports.types import Failure

from inferlet import _stdlib  # type: ignore[import-not-found]  # noqa: F401 - only modules imported here exist in guests
from inferlet._program import ProgramFailed, load_program, prepare, run_loaded  # type: ignore[import-not-found]


class WitWorld:
    """Exports of the world `python-runtime`."""

    def prepare(self) -> None:
        """Do what every run needs, before there is a program."""
        prepare()

    def load_source(self, source: str, filename: str, code: str) -> str:
        """Take the program; its compiled code.  Raises Err(Failure)."""
        try:
            return str(load_program(source, filename, code))
        except ProgramFailed as failed:
            raise _failure(failed) from None

    def run(self, input: str) -> str:
        """Run the program; its result as JSON.  Raises Err(Failure)."""
        try:
            return str(run_loaded(input))
        except ProgramFailed as failed:
            raise _failure(failed) from None


def _failure(failed: ProgramFailed) -> Err:
    return Err(Failure(failed.kind, failed.message, failed.trace))


prepare()
gc.collect()
gc.freeze()  # collections leave alone what the image holds: their marks would make each of its pages the guest's own

