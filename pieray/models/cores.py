"""How many threads a step of the decoder pays for, on the cores that are there."""

from __future__ import annotations

import os
from pathlib import Path

#: A thread for each so many bytes of weights: threads that have less to read wait for each other more than they gain.
BYTES_PER_THREAD = 32 << 20
CGROUP = Path("/sys/fs/cgroup")


def cores(cgroup: Path = CGROUP) -> int:
    """Those that this process may run on, and no more than its control group may use in time."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return found if quota is None else min(found, quota)


def _quota(cgroup: Path) -> int | None:
    """Whole cores that hold what a control group may use, of version 2 or of version 1; None: as much as it wants."""
    for read in (_of_version_2, _of_version_1):
        try:
            quota, period = read(cgroup)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:  # version 1 says -1 for no limit
            return -(-quota // period)
    return None


def _of_version_2(cgroup: Path) -> tuple[int, int]:
    quota, period = (cgroup / "cpu.max").read_text().split()
    return int(quota), int(period)


def _of_version_1(cgroup: Path) -> tuple[int, int]:
    folder = cgroup / "cpu"
    return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())


def decoder_threads(weight_bytes: int, num_cores: int) -> int:
    """Half of the cores, for the other half is the actors' (see `Config.actor_pool`), and no more than the weights are
    worth; at least one."""
    return max(1, min(num_cores // 2, weight_bytes // BYTES_PER_THREAD))
