"""One reading of the times that callers allow, for client and host alike.

A timeout is a number of seconds.  None and inf set no limit.  One that is 0 or less has passed: what is there already
is given, whatever would have to wait raises DeadlineExceeded.  What is no number, or NaN, raises InvalidRequest.
"""

from __future__ import annotations

import math
import time
from numbers import Real

from pieray.errors import DeadlineExceeded, InvalidRequest

LONGEST_WAIT_S = 86_400.0
"""The longest single wait: locks, sockets, `select` and Ray each overflow somewhere above.  Longer ones are several."""


class Deadline:
    """The moment until which a caller waits, on `time.monotonic`.

    `allowed_s` is the timeout as it was given, inf for none; `at` the moment, inf for never.
    """

    __slots__ = ("allowed_s", "at")

    def __init__(self, timeout: float | None, name: str = "timeout") -> None:
        """Begin now.  Raises InvalidRequest naming the parameter `name`."""
        self.allowed_s = seconds_of(timeout, name)
        self.at = time.monotonic() + self.allowed_s

    @property
    def is_over(self) -> bool:
        return self.left_s() <= 0

    def left_s(self) -> float:
        """Seconds left, in [0, LONGEST_WAIT_S]: fit for a lock, a socket or Ray.  Wait in a loop until `is_over`."""
        return wait_s(self.at)

    def check(self, what: str) -> None:
        """Raise DeadlineExceeded if the time is over; `what` is what did not happen, such as "x has not answered"."""
        if self.is_over:
            raise self.error(what)

    def error(self, what: str) -> DeadlineExceeded:
        return DeadlineExceeded(f"{what} within {self.allowed_s:g} s")


def seconds_of(timeout: float | None, name: str = "timeout") -> float:
    """A timeout in seconds, inf for None.  Raises InvalidRequest for NaN and what is no number."""
    if timeout is None:
        return math.inf
    seconds = math.nan
    if isinstance(timeout, Real) and not isinstance(timeout, bool):
        try:
            seconds = float(timeout)
        except OverflowError:  # an integer beyond all floats
            seconds = math.inf if timeout > 0 else -math.inf
    if math.isnan(seconds):
        raise InvalidRequest(f"{name} is a number of seconds, or None; given {timeout!r}")
    return seconds


def wait_s(at: float) -> float:
    """How long to wait in one go for a moment of `time.monotonic`: in [0, LONGEST_WAIT_S]."""
    return min(max(at - time.monotonic(), 0.0), LONGEST_WAIT_S)
