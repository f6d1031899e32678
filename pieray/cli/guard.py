"""Around every command: errors become one clear line and an exit code, signals end it in good order."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from pieray.cli.output import say
from pieray.cli.signals import StopSignals, printing_soon
from pieray.cli.streams import OutputLost
from pieray.errors import PierayError

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Report = Callable[[str, str], None]


class InferletFailed(Exception):
    """The inferlet ended with `error`; the engine is well."""

    def __init__(self, error: PierayError) -> None:
        super().__init__(error.message)
        self.error = error


@contextmanager
def guard(*, debug: bool = False, report: Report | None = None) -> Iterator[StopSignals]:
    """Run a command's body; leave with its exit code.  `report(code, message)` tells of an error (default: stderr)."""
    report = report or _report
    with StopSignals() as signals:
        try:
            yield signals
        except KeyboardInterrupt:
            with printing_soon(signals.exit_code):
                _leave(signals.exit_code, report, "cancelled", "interrupted")
        except OutputLost as lost:
            _leave_without_output(lost)
        except InferletFailed as failed:
            _leave(_inferlet_exit_code(failed.error), report, failed.error.code, failed.error.message)
        except PierayError as error:
            _show_trace(debug)
            _leave(_exit_code(error), report, error.code, error.message)
        except Exception as error:
            if isinstance(error, (typer.Exit, typer.BadParameter)):
                raise
            _show_trace(debug)
            hint = "" if debug else " (--debug shows where)"
            _leave(3, report, "internal", f"{type(error).__name__}: {error}{hint}")


def _exit_code(error: PierayError) -> int:
    """Before an inferlet runs, a refusal of what was asked for is a matter of usage."""
    return 2 if error.exit_code == 1 else error.exit_code


def _inferlet_exit_code(error: PierayError) -> int:
    """An inferlet that reports `not-found` has failed, whatever that code means to a command line."""
    return 3 if error.exit_code == 3 else 1


def _leave(exit_code: int, report: Report, code: str, message: str) -> None:
    try:
        report(code, message)
    except OutputLost as lost:
        _leave_without_output(lost)
    raise typer.Exit(exit_code) from None


def _leave_without_output(lost: OutputLost) -> None:
    if not lost.is_hung_up:
        _report("output", str(lost))
    raise typer.Exit(lost.exit_code) from None


def _report(code: str, message: str) -> None:
    say(f"{code}: {message}")


def _show_trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()
