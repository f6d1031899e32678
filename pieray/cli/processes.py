"""Ending processes, and making sure of it: those of sessions that this machine's commands started, nobody else's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

GRACE_S = 2.0
KILL_TIMEOUT_S = 5.0


def session_of(leader: int) -> list[psutil.Process]:
    """All processes of a session, whoever has adopted them; its number stays taken for as long as it has members."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == leader and not is_zombie(process.pid):
                found.append(process)
    return found


def is_zombie(pid: int) -> bool:
    """True for a process that has ended and was not waited for."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end(processes: Iterable[psutil.Process], grace_s: float = GRACE_S) -> list[int]:
    """SIGTERM, then SIGKILL after `grace_s`; returns the pids that are alive even so.

    A pid that has passed to another process meanwhile is left alone: psutil looks.
    """
    import psutil

    processes = list(processes)
    for signal_all, timeout_s in ((_terminate, grace_s), (_kill, KILL_TIMEOUT_S)):
        signal_all(processes)
        _, processes = psutil.wait_procs(processes, timeout=timeout_s)
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
