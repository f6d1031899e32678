"""The commands of one inferlet that are not finished: what its outbox sends, and what pages are asked for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pieray.arrays import I64
from pieray.host.device.commands import Command, Run
from pieray.host.device.rebuild import Rebuild
from pieray.pages.growing import Growing


@dataclass(slots=True)
class Work:
    """The commands of an inferlet that are not finished, in the order in which they were staged."""

    staged: deque[Command] = field(default_factory=deque)
    in_flight: dict[int, Command] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)  # those in flight
    num_flushed: int = 0  # of those staged, the first that may go
    num_lacking: int = 0  # pages for a run without which the first of what is staged cannot go
    lacking: Run | None = None  # that run
    num_settled: int = 0  # tokens computed by commands that have finished

    @property
    def num_outstanding(self) -> int:
        return len(self.staged) + len(self.in_flight)

    @property
    def num_computed(self) -> int:
        """Tokens that were computed."""
        return self.num_settled + sum(run.num_computed for run in self.runs.values())

    def unfinished(self, but: Command | None = None) -> list[Command]:
        """All of them, what is in flight first; without one."""
        return [command for command in (*self.in_flight.values(), *self.staged) if command is not but]

    def rows_in_flight(self) -> list[I64]:
        """Frames of what is in flight."""
        return [rows for command in self.in_flight.values() for rows in rows_of(command)]

    def rows_of(self, first: Command) -> list[I64]:
        """Frames that one that lacks pages must have together."""
        rows = [first.prepared.rows]
        if first.ticket in self.runs and isinstance(growing := first.prepared, Growing):
            rows.append(growing.tail[: growing.num_bound + 1])
        return rows

    def behind(self, first: Command) -> Command | None:
        """The one for which another computes what was lost."""
        return self.staged[1] if isinstance(first, Rebuild) and len(self.staged) > 1 else None

    def rows_behind(self, first: Command) -> list[I64]:
        behind = self.behind(first)
        return [] if behind is None else [behind.prepared.rows]


def rows_of(command: Command) -> list[I64]:
    """Frames of a command, of a plan also those that it has not got to."""
    prepared = command.prepared
    return [prepared.rows, prepared.all_rows] if isinstance(prepared, Growing) else [prepared.rows]
