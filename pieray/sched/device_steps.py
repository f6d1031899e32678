"""What of a step runs on the device, with an error for what fails: copies, swaps, one ragged batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pieray.arrays import F32, U32
from pieray.errors import DeviceLost, PierayError
from pieray.messages import Output
from pieray.models.batch import NO_ROWS, DecodeRows, ForwardItem
from pieray.models.draws import Drawn
from pieray.sched.commands import CopyCommand, MoveCommand
from pieray.sched.failures import error_of, known
from pieray.sched.page_moves import PageMove, PageMover

if TYPE_CHECKING:
    from pieray.models.adapter_file import AdapterFile
    from pieray.models.images import SeenImage
    from pieray.models.lora import LoraAdapter
    from pieray.models.outputs import StepResult
    from pieray.models.tensor_programs import ProgramInstance
    from pieray.tensor.program import Bounds

log = logging.getLogger(__name__)


class Runner(PageMover, Protocol):
    """What the core needs of `pieray.models.runner.ModelRunner`.

    All raise DeviceLost when the device is dead, and only then: nothing can be computed in this process any more.
    """

    def decode(
        self, rows: DecodeRows, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]
    ) -> tuple[Drawn, list[StepResult]]: ...

    def copy_tokens(self, ranges: Sequence[tuple[int, int, int, int, int]]) -> None: ...

    def require_trees(self) -> None: ...

    def embed(self, tokens: U32) -> F32: ...
    def load_program(self, code: bytes, bounds: Bounds, states: Sequence[bytes]) -> ProgramInstance: ...
    def see(self, data: bytes, max_pixels: int, max_bytes: int) -> SeenImage: ...
    def read_adapter(self, file: AdapterFile, max_bytes: int) -> LoraAdapter: ...


class DeviceSteps:
    """All raise DeviceLost, and nothing else whatever the runner throws."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def copy(self, copies: Sequence[Any]) -> PierayError | None:
        """Copy token ranges; what has gone wrong."""
        return error_of(lambda: self._runner.copy_tokens(copies))

    def move_pages(self, command: PageMove) -> PierayError | None:
        """Move the command's pages of the step; what has gone wrong."""
        return error_of(lambda: command.run(self._runner))

    def compute(
        self, rows: DecodeRows, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]
    ) -> tuple[Drawn, Sequence[StepResult]]:
        """As `Runner.decode`, which may throw: then each row and item is computed alone, so that what is at fault fails
        alone.  This is the one place where a step is tried again.  Raises DeviceLost."""
        if not items and not len(rows):
            return Drawn(np.zeros(0, np.int64), np.zeros(0, np.float32), {}), []
        try:
            return self._runner.decode(rows, items, outputs)
        except DeviceLost:
            raise
        except BaseException as error:  # whatever is thrown, the loop goes on
            if isinstance(error, PierayError):
                log.warning("a step of %d rows and %d forwards failed: %s", len(rows), len(items), error.message)
            else:
                log.exception("a step of %d rows and %d forwards failed", len(rows), len(items))
            if len(items) + len(rows) == 1:
                errors = dict.fromkeys(range(len(rows)), known(error))
                return Drawn(np.zeros(len(rows), np.int64), np.zeros(len(rows.scored), np.float32), errors), [
                    known(error) for _ in items
                ]
        parts = [self.compute(rows.take(np.array([row])), [], [])[0] for row in range(len(rows))]  # find the culprit
        drawn = Drawn(
            np.concatenate([np.zeros(0, np.int64), *(part.tokens for part in parts)]),
            np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)]),
            {row: part.errors[0] for row, part in enumerate(parts) if part.errors},
        )
        return drawn, [self.compute(NO_ROWS, [i], [o])[1][0] for i, o in zip(items, outputs, strict=True)]


def independent_groups(commands: Sequence[MoveCommand]) -> list[list[CopyCommand] | PageMove]:
    """Swaps, and runs of copies in which none touches what another of its run writes, in order: each is one device
    call."""
    groups: list[list[CopyCommand] | PageMove] = []
    run: list[CopyCommand] | None = None  # the last of the groups, if it may go on
    written: set[int] = set()
    for command in commands:
        if not isinstance(command, CopyCommand):
            assert isinstance(command, PageMove)
            groups.append(command)
            run = None
            continue
        if run is None or not written.isdisjoint(command.used_pages()):
            run, written = [], set()
            groups.append(run)
        run.append(command)
        written.update(command.written_pages())
    return groups
