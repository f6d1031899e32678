"""Around every command: errors become one clear line and an exit code, signals end it in good order."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from pieray.cli.output import say
from pieray.cli.signals import StopSignals
from pieray.errors import PierayError

BROKEN_PIPE_EXIT_CODE = 141  # 128 + SIGPIPE, as of any command whose reader has left

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
    _tolerate_any_encoding()
    with StopSignals() as signals:
        try:
            yield signals
        except KeyboardInterrupt:
            _leave(signals.exit_code, report, "cancelled", "interrupted")
        except BrokenPipeError:
            _hang_up()
            raise typer.Exit(BROKEN_PIPE_EXIT_CODE) from None
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
    except BrokenPipeError:
        _hang_up()
    raise typer.Exit(exit_code) from None


def _report(code: str, message: str) -> None:
    say(f"{code}: {message}")


def _show_trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def _hang_up() -> None:
    """Nobody reads stdout any more: what is buffered goes nowhere, so that the exit is quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tolerate_any_encoding() -> None:
    """A text that the terminal's encoding lacks must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
