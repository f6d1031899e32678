"""Standard streams that are closed, full, or whose reader has left."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

BROKEN_PIPE_EXIT_CODE = 141  # 128 + SIGPIPE, as of any command whose reader has left
LOST_EXIT_CODE = 3


class OutputLost(Exception):
    """What is written to stdout gets nowhere.  Raised once: what follows is dropped, so a command can end in order."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout cannot be written: {error.strerror}")
        self.is_hung_up = error.errno == errno.EPIPE
        """Its reader has left, as `head` does: nobody is to be told."""

    @property
    def exit_code(self) -> int:
        return BROKEN_PIPE_EXIT_CODE if self.is_hung_up else LOST_EXIT_CODE


class _File(io.FileIO):
    """A file descriptor whose first failed write raises OutputLost, if it is `required`; later ones are dropped."""

    def __init__(self, descriptor: int, *, required: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_required = required
        self._is_lost = False

    def write(self, data: object, /) -> int:
        size = memoryview(data).nbytes  # type: ignore[arg-type]  # a buffer, as the base class says less precisely
        if self._is_lost:
            return size
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            self._is_lost = True
            if self._is_required:
                raise OutputLost(error) from None
            return size


def prepare_streams() -> None:
    """Make the standard streams of this process whole; called once, before anything is read or written.

    One that was closed stays taken, or the next file opened would get its number: stdin is at its end, stderr drops
    what it gets, and stdout fails as a closed file does.  A character that an encoding lacks becomes "?".
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, flags)  # the lowest number that is free, but not for sure this one
            os.dup2(opened, descriptor)
            os.set_inheritable(descriptor, True)
            if opened != descriptor:
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stdout = _text_file(1, sys.stdout, required=True)
    sys.stderr = _text_file(2, sys.stderr, required=False)


def _text_file(descriptor: int, before: TextIO | None, *, required: bool) -> TextIO:
    file = _File(descriptor, required=required)
    encoding = before.encoding if before is not None else "utf-8"
    is_live = not required or file.isatty()
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, errors="replace", line_buffering=is_live)
