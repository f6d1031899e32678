"""Ending processes, and making sure of it: those this process started, those of a Ray head, nobody else's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

    from pieray.cli.signals import StopSignals

GRACE_S = 2.0
KILL_PATIENCE_S = 5.0


@contextmanager
def no_children_left(signals: StopSignals) -> Iterator[ExitStack]:
    """A block after which no process that it started is alive, however it ends; gives a stack for what to close.

    Ray ends its own; this is for what an interrupted start leaves.  Descendants are looked up before anything
    is closed, for Ray's workers are orphans afterwards, and nothing else would find them.  In a process that
    runs Ray already, that Ray and its processes are somebody else's.
    """
    closing = ExitStack()
    others = set()
    if _has_ray():
        others = {child.pid for child in descendants(os.getpid())[1:]}
    else:
        closing.callback(_shut_ray_down)  # the last to be called
    try:
        yield closing
    finally:
        with signals.held():
            _close_and_end(closing, others)


def _has_ray() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _close_and_end(closing: ExitStack, others: set[int]) -> None:
    children = [child for child in descendants(os.getpid())[1:] if child.pid not in others]
    try:
        closing.close()
    finally:
        end(children, grace_s=1.0)  # a half-started Ray does not heed SIGTERM, and has nothing to save


def _shut_ray_down() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def descendants(pid: int) -> list[psutil.Process]:
    """The process and all below it; empty if there is none."""
    import psutil

    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def end(processes: Iterable[psutil.Process], grace_s: float = GRACE_S) -> list[int]:
    """SIGTERM, then SIGKILL after `grace_s`; returns the pids that are alive even so.

    A pid that has passed to another process meanwhile is left alone: psutil looks.
    """
    import psutil

    processes = list(processes)
    for signal_all, patience_s in ((_terminate, grace_s), (_kill, KILL_PATIENCE_S)):
        signal_all(processes)
        _, processes = psutil.wait_procs(processes, timeout=patience_s)
    return [p.pid for p in processes]


def _terminate(processes: Iterable[psutil.Process]) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            process.terminate()


def _kill(processes: Iterable[psutil.Process]) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            process.kill()
