"""What one tenant may have of an engine: its share, its quotas, and how its launches rank."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pieray.errors import ConfigError
from pieray.mapping import from_mapping

ALL_OTHERS = "*"
"""The name in `Config.tenants` that stands for every tenant that has no entry of its own."""
MAX_PRIORITY = 100
"""Priorities are from -MAX_PRIORITY to MAX_PRIORITY; 0 is what nobody has said anything of."""


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """An entry of `Config.tenants`.  A quota of 0 is none of the tenant's own."""

    weight: float = 1.0
    """Its part of what is shared out, beside that of others."""
    priority: int = 0
    """Added to that of what its clients launch; the sum is kept from -100 to 100."""
    pages: int = 0
    """KV pages that its inferlets hold at one time."""
    inferlets: int = 0
    """Its inferlets that run, or wait for a place, at one time, children included.  One more is `overloaded`."""
    tokens_per_minute: int = 0
    """Tokens that its inferlets compute, prompts included: an allowance of one minute's that fills steadily.  While it
    is used up, launches are `overloaded`; what runs goes on, and has to be made up for."""
    store_bytes: int = 0
    """In place of `limits.store_bytes`: what it keeps in the key-value store."""
    broker_bytes: int = 0
    """In place of `limits.broker_bytes`: its texts in queues and topics that nobody has taken."""

    def check(self, prefix: str) -> None:
        """Raise ConfigError for a value outside its range, naming the setting behind `prefix`."""
        if not 0 < self.weight < math.inf:  # NaN neither
            raise ConfigError(f"{prefix}weight is above 0; given {self.weight}")
        if abs(self.priority) > MAX_PRIORITY:
            raise ConfigError(f"{prefix}priority is from {-MAX_PRIORITY} to {MAX_PRIORITY}; given {self.priority}")
        for name in ("pages", "inferlets", "tokens_per_minute", "store_bytes", "broker_bytes"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{prefix}{name} is at least 0 (no quota); given {value}")

    @property
    def is_counted(self) -> bool:
        """Whether each of its launches needs the Controller's leave: no places are granted for them."""
        return bool(self.inferlets or self.tokens_per_minute)


NO_SETTINGS = TenantSettings()


def check_tenants(table: Mapping[str, Any]) -> None:
    """Raise ConfigError naming tenant, setting and value where an entry of `Config.tenants` is none."""
    for tenant, values in table.items():
        _parsed(tenant, values)


def settings_of(table: Mapping[str, Any], tenant: str) -> TenantSettings:
    """The settings of a tenant: its own entry, else that of all others; they are not laid over each other."""
    values = table.get(tenant, table.get(ALL_OTHERS))
    if values is None:
        return NO_SETTINGS
    return values if isinstance(values, TenantSettings) else _cached(tuple(values.items()))


@functools.lru_cache(1024)
def _cached(values: tuple[tuple[str, Any], ...]) -> TenantSettings:
    return _parsed("", dict(values))


def _parsed(tenant: str, values: Any) -> TenantSettings:
    prefix = f"tenants.{tenant}."
    if not isinstance(values, (TenantSettings, Mapping)):
        raise ConfigError(f"tenants.{tenant} is a mapping of settings; given {values!r}")
    found = values if isinstance(values, TenantSettings) else from_mapping(TenantSettings, values, prefix)
    found.check(prefix)
    return found
