"""The seam: the rest of the SDK reaches the host through this module alone.

The handlers of `_bindings` are the engine's in the component; elsewhere they are those of a host that `install` gives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from . import _raw
from ._bindings import (
    adapters,
    chat,
    children,
    embeds,
    forward,
    grammar,
    http,
    kv,
    mcp,
    messaging,
    model,
    plans,
    programs,
    queues,
    runtime,
    samplers,
    scratch,
    session,
    store,
    tickets,
)
from ._raw import INTERFACES, Access, GrammarKind, LinkKind, LogLevel, is_component

__all__ = [
    "INTERFACES",
    "Access",
    "GrammarKind",
    "LinkKind",
    "LogLevel",
    "adapters",
    "chat",
    "children",
    "embeds",
    "forward",
    "grammar",
    "http",
    "is_component",
    "kv",
    "mcp",
    "messaging",
    "model",
    "plans",
    "programs",
    "queues",
    "runtime",
    "samplers",
    "scratch",
    "session",
    "store",
    "tickets",
]

T = TypeVar("T")
_at_install: list[Callable[[], None]] = []


def at_install(forget: Callable[[], None]) -> None:
    """Call `forget` whenever another host is installed."""
    _at_install.append(forget)


def cached(function: Callable[..., T]) -> Callable[..., T]:
    """What `function` returns, remembered for as long as the host is the same."""
    remembered = functools.cache(function)
    at_install(remembered.cache_clear)
    return remembered


def install(host: Any) -> None:
    """Serve all handlers from `host`, whose attributes are named like the WIT's interfaces."""
    if is_component:
        raise RuntimeError("inside the component the handlers are the engine's")
    for name in INTERFACES:
        functions = getattr(host, name, SimpleNamespace())
        bound = {key: getattr(functions, key) for key in dir(functions) if not key.startswith("_")}
        namespace = vars(getattr(_raw, name))
        namespace.clear()
        namespace.update(bound)
    forget()


def forget() -> None:
    """Forget what is remembered of the host."""
    for forget_one in _at_install:
        forget_one()
