"""When commands join rows of the decode table that are of other inferlets.

Commands make a step longer than one of rows alone is, whatever they are: rows alone are one call of the kernels, or one
CUDA graph.  So their inferlets pay for that (`Shares.pay`) and come together, in as few steps as are worth it: when one
of them is behind by that and by work that is worth it, or would be if it had taken nothing else since the last time
(`Shares.steps_until`).  In between, nobody looks at them.

Tenants pay likewise, out of what they may have beside others.  Where candidates have several priorities, commands may
join each step, and nobody pays: `precedence.py` says then who is in it.
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
        self.num_waited = 0  # steps that commands were kept out of, since they joined last

    def stays_closed(self, num_opened: int) -> bool:
        """Whether commands are not to be looked at in this step."""
        if self._num_left <= 0 or num_opened != self._num_opened:
            self._num_left = 0
            return False
        self._num_left -= 1
        self.num_waited += 1
        return True

    def keep_out(self, num_steps: int, num_opened: int) -> None:
        """Commands are not in this step, nor in the next ones: of `num_steps`, at the last it is looked anew."""
        self.num_waited += 1
        self._close(num_steps, num_opened)

    def joined(self, num_steps: int, num_opened: int) -> None:
        """Commands are in this step, and not in the next ones: of `num_steps`, at the last it is looked anew."""
        self.num_waited = 0
        self._close(num_steps, num_opened)

    def _close(self, num_steps: int, num_opened: int) -> None:
        self._num_left, self._num_opened = min(num_steps, GATE_STEPS) - 1, num_opened

    def passed(self) -> None:
        """A step was formed for which nobody looked at accounts."""
        self._num_passed = min(self._num_passed + 1, GATE_STEPS)

    def take_passed(self) -> int:
        """Such steps, since this was called last."""
        found, self._num_passed = self._num_passed, 0
        return found
