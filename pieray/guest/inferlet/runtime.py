"""This inferlet: its id, its limits, clocks and randomness."""

from __future__ import annotations

import json
from typing import Any

from . import _convert, _host
from ._idle import LONG_S
from .tickets import Ticket, take_none


def version() -> str:
    """Version of the handler API."""
    return str(_host.runtime.version())


def instance_id() -> str:
    """The id of this inferlet."""
    return str(_host.runtime.instance_id())


def program() -> str:
    """name@version of this inferlet's program."""
    return str(_host.runtime.program())


def user() -> str:
    """Who answers for this inferlet."""
    return str(_host.runtime.user())


def tenant() -> str:
    """Whose names, messages, store and quota this inferlet uses."""
    return str(_host.runtime.tenant())


def parent() -> str:
    """Id of the inferlet that launched this one, or ""."""
    return str(_host.runtime.parent())


def arguments() -> dict[str, Any]:
    """What this inferlet was launched with."""
    return dict(json.loads(_host.runtime.input()))


def capabilities() -> dict[str, Any]:
    """What this inferlet may reach beyond itself and its model."""
    return dict(json.loads(_host.runtime.capabilities()))


def limits() -> dict[str, Any]:
    """This inferlet's limits and what is used of them."""
    return dict(json.loads(_host.runtime.limits()))


def usage() -> dict[str, int]:
    """Tokens that this inferlet has computed (`tokens_computed`), those that were there (`tokens_found`), and pages
    that it has given up for others for a while (`pages_swapped`)."""
    return dict(json.loads(_host.runtime.usage()))


def now() -> float:
    """Seconds since 1970-01-01 UTC."""
    return float(_host.runtime.wall_now()) / 1e9


def monotonic() -> float:
    """Seconds, with fractions, of a clock that never goes back; only differences mean anything.

    The handler beneath it counts nanoseconds.
    """
    return float(_host.runtime.monotonic_now()) / 1e9


def sleep(seconds: float) -> Ticket[None]:
    """Awaited, returns after that time."""
    ticket = _host.runtime.sleep(_convert.milliseconds("seconds", seconds, 0xFFFFFFFF))
    return Ticket(ticket, take_none, is_long=seconds >= LONG_S)


def random_u64() -> int:
    """64 random bits."""
    return int(_host.runtime.random_u64())


def seed(seed: int) -> None:
    """From here on `random_u64`, and with it `random` and unseeded samplers, repeat what follows this seed."""
    _host.runtime.seed(seed)


def random() -> float:
    """A random number in [0, 1)."""
    return (random_u64() >> 11) / (1 << 53)
