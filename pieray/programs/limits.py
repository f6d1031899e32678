"""The limits and capabilities of one inferlet: what its client asks for, within what the engine allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pieray.config import Limits
from pieray.errors import ConfigError
from pieray.mapping import from_mapping
from pieray.messages import Launch
from pieray.programs.capabilities import Capabilities


def limits_within(ceiling: Limits, asked: Mapping[str, Any]) -> Limits:
    """The engine's limits, lowered to what was asked for.

    Raises ConfigError for an unknown limit, and for one that is no number, below 0 or above the engine's.
    """
    try:
        given = from_mapping(Limits, asked, "limits.")
    except (OverflowError, TypeError, AttributeError) as error:
        raise ConfigError(f"limits are numbers by name; given {asked!r}: {error}") from None
    lowered: dict[str, Any] = {}
    for name in (key.replace("-", "_") for key in asked):
        value, most = getattr(given, name), getattr(ceiling, name)
        if value < 0:
            raise ConfigError(f"limits.{name} is at least 0; given {value}")
        if value > most:
            raise ConfigError(f"limits.{name}: this engine allows at most {most}; given {value}")
        lowered[name] = value
    return dataclasses.replace(ceiling, **lowered) if lowered else ceiling


def capabilities_of(launch: Launch) -> Capabilities:
    """The capabilities that a launch declares; raises ConfigError for an unknown one."""
    return from_mapping(Capabilities, launch.capabilities, "capabilities.")
