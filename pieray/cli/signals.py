"""Ctrl-C, SIGTERM and a closed terminal: the first one ends the command in good order, later ones change nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODES = tuple(128 + signum for signum in STOPPING)
PRINT_S = 2.0


def leave_at_once() -> None:
    """Let a stopping signal end this process with its exit code, without a word: there is nothing to put in order.

    One that came while the interpreter started, held back by `bin/pieray`, does so now.
    """
    _install(lambda signum, _frame: os._exit(128 + signum))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _install(handler: Callable[[int, FrameType | None], object]) -> None:
    """Take the stopping signals; under `nohup` a closed terminal goes on to be ignored."""
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def printing_soon(exit_code: int) -> Iterator[None]:
    """A block that prints the last of a stopped command, for PRINT_S at most: who reads it may have stopped too, and a
    full pipe holds up for ever.  After that the process ends with the code."""
    before = signal.signal(signal.SIGALRM, lambda _signum, _frame: os._exit(exit_code))
    signal.setitimer(signal.ITIMER_REAL, PRINT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class StopSignals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the main thread, once.

    A process that was told to stop stays deaf to more of it, so that what is left to do is done in peace.
    KeyboardInterrupt for all, because Ray's waits let no other exception of a signal handler through.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._is_held = False
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a command that a signal ended."""
        return 128 + (self.signum or signal.SIGINT)

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in STOPPING}
        _install(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if self.signum is None else signal.SIG_IGN)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that no signal cuts short, such as a shutdown; one that came is raised at its end."""
        before = self.signum
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self.signum is not None and before is None:
            raise KeyboardInterrupt

    @contextmanager
    def starting_ray(self) -> Iterator[None]:
        """A block in which this process may join Ray, whose own handler of SIGTERM ends it with SystemExit."""
        try:
            yield
        except SystemExit:
            self.signum = self.signum or signal.SIGTERM
            raise KeyboardInterrupt from None
        finally:
            _install(self._handle)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
            if not self._is_held:
                raise KeyboardInterrupt
