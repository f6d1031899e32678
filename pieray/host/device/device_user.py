"""What the device client needs of an inferlet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pieray.errors import DeviceLost, PierayError


class DeviceUser(Protocol):
    """An inferlet as the device client sees it.  Called on reader threads."""

    def answered(self, answers: Sequence[tuple[int, object]]) -> None:
        """Results (or PierayErrors) of commands and outputs, and RunTokens of plans, by guest ticket."""

    def granted(self, pages: list[int], num_found: int) -> None: ...

    def lease_failed(self, error: PierayError) -> None: ...

    def ledger_answered(self, ticket: int, result: object) -> None:
        """The answer to a request of its own, by guest ticket: a value or a PierayError."""

    def device_lost(self, error: DeviceLost) -> None: ...

    def reclaim(self) -> list[int]:
        """Pages that no handle uses, taken out of the inferlet."""

    def is_idle(self, now: float) -> bool:
        """Whether it has pages, and has had nothing to compute for a while; `now` is time.monotonic()."""

    def preempt(self, kept: Sequence[int], shared: Sequence[int]) -> None:
        """Give up all pages but those `kept`, see Preempt; `DeviceClient.preempted` is called in the end."""
