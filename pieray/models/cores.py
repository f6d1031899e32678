"""How many threads a step of the decoder pays for, on the cores that are there."""

from __future__ import annotations

import os

#: A thread for each so many bytes of weights: threads that have less to read wait for each other more than they gain.
BYTES_PER_THREAD = 32 << 20


def cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decoder_threads(weight_bytes: int, num_cores: int) -> int:
    """Half of the cores, for the other half is the actors' (see `Config.actor_pool`), and no more than the weights are
    worth; at least one."""
    return max(1, min(num_cores // 2, weight_bytes // BYTES_PER_THREAD))
