"""The device groups that an InferletActor is connected to, by the model that they serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pieray.host.device.groups import DeviceGroups
from pieray.host.device.sessions import DeviceSessions

Devices: TypeAlias = DeviceGroups | DeviceSessions
"""Of one model."""


class ModelDevices:
    """Thread-safe: what models there are never changes."""

    def __init__(self, first: Devices, others: Mapping[str, Devices] | None = None) -> None:
        """`first`: of the default model; the others by their names."""
        self.first = first
        self._others = dict(others or {})
        self._all = [first, *self._others.values()]

    def of(self, name: str) -> Devices:
        """Of the model of that name, "" for the default one."""
        return self._others.get(name, self.first)

    def on_answered(self, called: Callable[[], None]) -> None:
        """Call this when inferlets have got what one frame of a batcher brought."""
        for devices in self._all:
            devices.on_answered = called

    def is_short(self, tenant: str, priority: int) -> bool:
        """Whether pages are short where a program most likely computes: on all groups of the default model."""
        return self.first.is_short(tenant, priority)

    def flush(self) -> None:
        """Send what inferlets have posted."""
        for devices in self._all:
            devices.flush()

    def status(self) -> dict[str, Any]:
        """As that of the one that is worst off; with several models, of each by name too: "" is the default one."""
        found = {name: devices.status() for name, devices in {"": self.first, **self._others}.items()}
        worst = max(found.values(), key=lambda one: (not one["is_up"], one["down_s"]))
        return worst if len(found) == 1 else {**worst, "models": found}

    def close(self) -> None:
        """Hang up and dial no more; idempotent."""
        for devices in self._all:
            devices.close()
