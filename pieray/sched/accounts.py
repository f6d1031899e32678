"""What tenants and inferlets have had of the device's time, and want of a step; `shares.py` alone changes it.

Times are in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Tenant:
    """A tenant that has inferlets; `clock` is that of its inferlets' accounts."""

    weight: float = 1.0  # shares are as many times as large as others'
    part: float = 1.0  # the same, over the mean of those that are there
    spent: float = -math.inf
    clock: float = 0.0
    share: float = 0.0  # seconds that its clock moves by in a step
    burst_s: float = 0.0  # that its inferlets may fall behind by
    free_s: float = 0.0  # that the first decode of each in a step takes of nobody's share
    num_lanes: int = 0
    taken: float = 0.0  # in the step that is being filled
    is_ahead: bool = False  # of its clock, as that step began
    # what it wants of that step
    decode_s: float = 0.0
    lanes: list[Demand] = field(default_factory=list)
    num_rows: int = 0  # settled
    rows_s: float = 0.0  # what those take
    num_away: int = 0
    least: float = math.inf

    @property
    def is_wanting(self) -> bool:
        return bool(self.lanes or self.num_rows)


@dataclass(slots=True, eq=False)
class Account:
    """One inferlet's."""

    tenant: Tenant
    spent: float = -math.inf
    taken: float = 0.0  # in the step that is being filled
    own: float = 0.0  # of that, what its share pays for
    is_ahead: bool = False
    may_join: bool = False  # its commands may join rows of others in the step that is being filled


@dataclass(slots=True)
class Demand:
    """What an inferlet wants of a step: seconds of decodes, and whether there is more than those."""

    lane: int
    account: Account
    decode_s: float = 0.0
    has_more: bool = False
    is_row: bool = False  # one row of the decode table is all
