"""How urgent a launch is: its priority, when its result is wanted, and how long its family has been there.

A command carries the priority of its launch and that of its queue as one number, the launch's before the queue's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pieray.errors import InvalidRequest
from pieray.messages import Launch
from pieray.tenants import MAX_PRIORITY, TenantSettings

if TYPE_CHECKING:
    from pieray.arrays import I32


SERVICE_TOKENS = 1024
"""Service up to here is all one; from here on each doubling makes a difference."""
QUEUE_BITS = 8
"""Of a command's priority, those of its queue's."""

N = TypeVar("N", int, "I32")


def command_priority(launch: int, queue: int) -> int:
    """The priority of the commands of a queue of a launch."""
    return (launch << QUEUE_BITS) + queue


def launch_priority(command: N) -> N:
    """The launch's priority in that of a command; of a column of them, a column."""
    return (command + (1 << (QUEUE_BITS - 1))) >> QUEUE_BITS


def check_priority(priority: int) -> int:
    """The priority; raises InvalidRequest for what is no whole number from -MAX_PRIORITY to MAX_PRIORITY."""
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > MAX_PRIORITY:
        raise InvalidRequest(f"priority is a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}; given {priority!r}")
    return priority


def deadline_at(deadline_s: float | None, now: float) -> float:
    """When a result is wanted that is wanted in so many seconds, by the clock of `now`; 0.0 for None and 0: no matter.

    Raises InvalidRequest for what is no number of seconds.
    """
    if deadline_s is None:
        return 0.0
    is_number = isinstance(deadline_s, (int, float)) and not isinstance(deadline_s, bool)
    if not is_number or not math.isfinite(deadline_s) or deadline_s < 0:
        raise InvalidRequest(f"deadline_s is a number of seconds from 0 (none) on; given {deadline_s!r}")
    return now + deadline_s if deadline_s else 0.0


def admitted(launch: Launch, tenant: TenantSettings, now: float) -> Launch:
    """The launch as an engine takes it, at time.time() `now`: with its tenant's priority added and as the root of a
    family, which children have from their parents; and one whose family has no birth yet is born now.

    Raises InvalidRequest for a priority or times outside their ranges.
    """
    check_priority(launch.priority)
    for name in ("deadline", "born"):
        if not math.isfinite(value := getattr(launch, name)) or value < 0:
            raise InvalidRequest(f"{name} of a launch is a Unix time, or 0; given {value}")
    if not launch.depth and launch.family != launch.instance_id:
        launch = replace(launch, family=launch.instance_id)
    if tenant.priority and not launch.depth:
        priority = max(-MAX_PRIORITY, min(MAX_PRIORITY, launch.priority + tenant.priority))
        launch = replace(launch, priority=priority)
    return launch if 0 < launch.born <= now else replace(launch, born=now)
