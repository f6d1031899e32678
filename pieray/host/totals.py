"""What inferlets that have ended have used, and what those that run do: for metrics, asked now and then."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

SUMS = ("cpu_time_s", "tokens_computed", "tokens_found")


class Totals:
    """Of one actor, since it began.  Thread-safe."""

    def __init__(self) -> None:
        self._ended: Counter[str] = Counter()
        self._sums = dict.fromkeys(SUMS, 0.0)
        self._lock = threading.Lock()

    def ended(self, status: Mapping[str, Any]) -> None:
        """An inferlet has ended with these facts."""
        with self._lock:
            self._ended[status["state"]] += 1
            for name in SUMS:
                self._sums[name] += status[name]

    def facts(self, live: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """`ended` by state, sums over all, those that run included, and those that run by program and state."""
        programs: dict[str, dict[str, int]] = {}
        with self._lock:
            sums, ended = dict(self._sums), dict(self._ended)
        for status in live:
            for name in SUMS:
                sums[name] += status[name]
            states = programs.setdefault(status["name"], {})
            states[status["state"]] = states.get(status["state"], 0) + 1
        return {**sums, "ended": ended, "live": programs}
