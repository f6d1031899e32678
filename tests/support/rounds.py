"""How many random cases tests go through: a few in a usual run, `PIERAY_FUZZ_ROUNDS` times as many in a long one."""

from __future__ import annotations

import os

ROUNDS = int(os.environ.get("PIERAY_FUZZ_ROUNDS", "1"))


def seeds(count: int) -> range:
    """Seeds of random cases, `count` in a usual run."""
    return range(count * ROUNDS)


def examples(count: int) -> int:
    """For hypothesis' `max_examples`."""
    return count * ROUNDS
