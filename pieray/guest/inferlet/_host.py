"""The seam: the handlers that the host gives, in the component or from a fake.

Inside the component the names are the generated bindings of `pieray/wit/pieray.wit`; elsewhere they are empty
namespaces that `install` fills.  The rest of the SDK reaches the host through this module alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

try:
    from componentize_py_types import Err
    from wit_world.imports import (
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
        queues,
        runtime,
        samplers,
        scratch,
        session,
        store,
        tickets,
    )
    from wit_world.imports.types import Access, GrammarKind, LinkKind, LogLevel

    is_component = True
except ImportError:
    from ._outside import (
        Access,
        Err,
        GrammarKind,
        LinkKind,
        LogLevel,
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
        queues,
        runtime,
        samplers,
        scratch,
        session,
        store,
        tickets,
    )

    is_component = False

INTERFACES = (
    "tickets", "queues", "kv", "embeds", "samplers", "forward", "plans", "grammar", "adapters", "model", "chat",
    "session", "scratch", "messaging", "children", "http", "store", "mcp", "runtime",
)  # fmt: skip

__all__ = [
    "Access",
    "Err",
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
    "kv",
    "mcp",
    "messaging",
    "model",
    "plans",
    "queues",
    "runtime",
    "samplers",
    "scratch",
    "session",
    "store",
    "tickets",
]

T = TypeVar("T")
_caches: list[Any] = []


def cached(function: Callable[..., T]) -> Callable[..., T]:
    """What `function` returns, remembered for as long as the host is the same."""
    remembered = functools.cache(function)
    _caches.append(remembered)
    return remembered


def install(host: Any) -> None:
    """Serve all handlers from `host`, whose attributes are named like the WIT's interfaces."""
    if is_component:
        raise RuntimeError("inside the component the handlers are the engine's")
    for name in INTERFACES:
        functions = getattr(host, name, SimpleNamespace())
        bound = {key: getattr(functions, key) for key in dir(functions) if not key.startswith("_")}
        globals()[name].__dict__.clear()
        globals()[name].__dict__.update(bound)
    for remembered in _caches:
        remembered.cache_clear()
