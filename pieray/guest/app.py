"""Entry of the Python runtime component: the class that componentize-py binds to the world's exports."""

from __future__ import annotations

import gc
import random
from typing import Any

from componentize_py_types import Err
from wit_world.imports.types import Failure

from inferlet import _stdlib  # type: ignore[import-not-found]  # noqa: F401 - only modules imported here exist in guests
from inferlet._program import ProgramFailed, compile_source, prepare, run_source  # type: ignore[import-not-found]


class WitWorld:
    """Exports of the world `python-runtime`."""

    def prepare(self) -> None:
        """Do what every run needs, before there is a program."""
        prepare(limit=2)

    def compile_source(self, source: str, filename: str) -> str:
        """The code of a program.  Raises Err(Failure)."""
        try:
            return str(compile_source(source, filename))
        except ProgramFailed as failed:
            raise _failure(failed) from None

    def run_source(self, source: str, filename: str, code: str, seed: int, input: str) -> str:
        """Run a program; its result as JSON.  Raises Err(Failure)."""
        try:
            return str(run_source(source, filename, code, seed, input))
        except ProgramFailed as failed:
            raise _failure(failed) from None


def _failure(failed: ProgramFailed) -> Err:
    return Err(Failure(failed.kind, failed.message, failed.trace))


def _leave_unseeded(*_args: Any) -> None:
    """componentize-py takes `random.seed` once this module is imported, and calls it in each guest ahead of the first
    export: that asks the host for 2.5 kB in ten calls.  `run_source` seeds from one number, with the real one."""
    random.seed = _seed


#: New objects, from which on cycles are collected.  A collection marks all that there is, and makes each page of the
#: image the guest's own: no guest that is soon over has one.
COLLECT_AT = 20_000

prepare()
_seed = random.seed
random.seed = _leave_unseeded  # type: ignore[assignment]  # for that one call
gc.collect()
gc.freeze()
gc.set_threshold(COLLECT_AT)
