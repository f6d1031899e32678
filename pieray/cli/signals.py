"""Ctrl-C and SIGTERM: the first one ends the command in good order, later ones change nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM raises KeyboardInterrupt in the main thread, once.

    A process that was told to stop stays deaf to more of it, so that what Ray does at exit is done in peace.
    KeyboardInterrupt for both, because Ray's waits let no other exception of a signal handler through.
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
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        for number, handler in self._before.items():
            signal.signal(number, handler if self.signum is None else signal.SIG_IGN)

    def install(self) -> None:
        """Take the signals (back): starting Ray replaces the handler of SIGTERM."""
        for number in STOPPING:
            signal.signal(number, self._handle)

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
        """A block in which Ray may start: its own SIGTERM handler ends it with SystemExit."""
        try:
            yield
        except SystemExit:
            self.signum = self.signum or signal.SIGTERM
            raise KeyboardInterrupt from None
        finally:
            self.install()

    def kept(self, show: Callable[[str], None]) -> Callable[[str], None]:
        """`show`, taking the signals back at each line: the earlier the better once Ray is up."""

        def show_and_install(text: str) -> None:
            self.install()
            show(text)

        return show_and_install

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
            if not self._is_held:
                raise KeyboardInterrupt
