"""The seam: the handlers that the host gives, in the component or from a fake.

Inside the component the names are the generated bindings of `pieray/wit/pieray.wit`; elsewhere they are empty
namespaces that `install` fills.  The rest of the SDK reaches the host through this module alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

try:
    from componentize_py_types import Err
    from wit_world.imports import forward, kv, model, queues, runtime, session, tickets
    from wit_world.imports.types import LogLevel

    is_component = True
except ImportError:
    from ._outside import Err, LogLevel, forward, kv, model, queues, runtime, session, tickets

    is_component = False

__all__ = ["Err", "LogLevel", "forward", "kv", "model", "queues", "runtime", "session", "tickets"]

T = TypeVar("T")
INTERFACES = ("tickets", "queues", "kv", "forward", "model", "session", "runtime")
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
        functions = getattr(host, name)
        bound = {key: getattr(functions, key) for key in dir(functions) if not key.startswith("_")}
        globals()[name].__dict__.clear()
        globals()[name].__dict__.update(bound)
    for remembered in _caches:
        remembered.cache_clear()
