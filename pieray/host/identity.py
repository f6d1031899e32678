"""Who an inferlet is and what it may do."""

from __future__ import annotations

from dataclasses import dataclass

from pieray.concurrency.loop_shares import Who
from pieray.config import Limits
from pieray.messages import Launch
from pieray.programs.capabilities import Capabilities


@dataclass(frozen=True, slots=True)
class Identity:
    """Fixed from launch to end."""

    launch: Launch
    number: int
    """The actor's number for it, in messages to the device."""
    limits: Limits
    capabilities: Capabilities

    @property
    def instance_id(self) -> str:
        return self.launch.instance_id

    @property
    def tenant(self) -> str:
        return self.launch.tenant

    @property
    def who(self) -> Who:
        """Whose share it takes of what inferlets wait for in turn."""
        return Who(self.launch.tenant, self.launch.instance_id)
