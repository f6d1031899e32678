"""When commands join rows of the decode table that are of other inferlets.

Commands make a step longer than one of rows alone is, whatever they are: rows alone are one call of the kernels, or one
CUDA graph.  So their inferlets pay for that (`Shares.pay`) and come together, in as few steps as are worth it: when one
of them is behind by that and by work that is worth it (`Shares.steps_until`).  In between, nobody looks at them.
Where launches have several priorities, precedence decides (`precedence.py`), and nobody pays.
"""

from __future__ import annotations

GATE_STEPS = 32
"""After so many steps at most it is looked anew."""


class Gate:
    """Open at first.  `num_opened` counts the inferlets that have come to have commands: a newcomer is looked at."""

    def __init__(self) -> None:
        self._num_left = 0  # steps that it stays closed for
        self._num_opened = 0  # when it was closed
        self._num_passed = 0

    def stays_closed(self, num_opened: int) -> bool:
        """Whether commands are not to be looked at in this step."""
        if self._num_left <= 0 or num_opened != self._num_opened:
            self._num_left = 0
            return False
        self._num_left -= 1
        return True

    def close(self, num_steps: int, num_opened: int) -> None:
        """From the next step on; of `num_steps`, at the last it is looked anew."""
        self._num_left, self._num_opened = min(num_steps, GATE_STEPS) - 1, num_opened

    def passed(self) -> None:
        """A step was formed for which nobody looked at accounts."""
        self._num_passed = min(self._num_passed + 1, GATE_STEPS)

    def take_passed(self) -> int:
        """Such steps, since this was called last."""
        found, self._num_passed = self._num_passed, 0
        return found
