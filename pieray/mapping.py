"""From nested mappings (files, flags, JSON) to dataclasses of settings: every key known, every value of its type and
in its range."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pieray.errors import ConfigError

T = TypeVar("T")

_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def from_mapping(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a settings dataclass from nested mappings; `prefix` names the place in errors.

    Raises ConfigError for an unknown key (with the nearest known one) and for a value of a wrong type.
    """
    hints = _types_of(cls)  # type: ignore[arg-type]  # classes are hashable
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(sorted(hints))}"
            raise ConfigError(f"unknown setting {prefix}{key}{hint}")
        kwargs[name] = _convert(prefix + name, value, hints[name])
    return cls(**kwargs)


@functools.cache
def _types_of(cls: type) -> dict[str, Any]:
    """Types of the fields of a settings dataclass, by name."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _convert(name: str, value: object, kind: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        if isinstance(value, Mapping):
            return from_mapping(kind, value, f"{name}.")
    found = _plain(value, kind)
    if found is None:
        raise ConfigError(f"{name} is {getattr(kind, '__name__', kind)}; given {value!r}")
    return found


def _plain(value: object, kind: Any) -> Any:
    """The value as a `kind` that is no settings class, or None."""
    container = {tuple: _texts, dict: _table}.get(typing.get_origin(kind))
    if container is not None:
        return container(value)
    if isinstance(kind, types.UnionType) or (kind is str and isinstance(value, str)):
        return value
    if kind is bool and (isinstance(value, bool) or str(value).lower() in _BOOLEANS):
        return _BOOLEANS[str(value).lower()]
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return _number(value, kind)
    return None


def _number(value: float | str, kind: type) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    if math.isnan(number) or (kind is int and not number.is_integer()):
        return None
    return int(number) if kind is int else number


def _texts(value: object) -> tuple[str, ...] | None:
    """A list of strings, also as text with commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    return None


def _table(value: object) -> dict[str, Any] | None:
    """A mapping, also as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return dict(value) if isinstance(value, Mapping) and all(isinstance(k, str) for k in value) else None


def check_numbers(settings: object, prefix: str, least: Mapping[str, float]) -> None:
    """Raise ConfigError unless every number of a settings dataclass is at least 0, or what `least` says of it."""
    for f in dataclasses.fields(settings):  # type: ignore[arg-type]  # it is one
        value = getattr(settings, f.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_at_least(prefix + f.name, value, least.get(f.name, 0))


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError for a value that is none of those."""
    if value not in allowed:
        raise ConfigError(f"{name} is one of {', '.join(allowed)}; given {value!r}")


def check_share(name: str, value: float) -> None:
    """Raise ConfigError for what is no part of a whole."""
    if not 0 <= value <= 1:  # NaN neither
        raise ConfigError(f"{name} is from 0 to 1; given {value}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raise ConfigError for less."""
    if not value >= least:  # NaN neither
        raise ConfigError(f"{name} is at least {least}; given {value}")
