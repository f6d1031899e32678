"""The seam: the handlers that the host gives, in the component or from a fake.

Inside the component the names are the generated bindings of `pieray/wit/pieray.wit`; elsewhere they are empty
namespaces that `install` fills.  The rest of the SDK reaches the host through this module alone.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

T = TypeVar("T")
INTERFACES = ("tickets", "queues", "kv", "forward", "model", "session", "runtime")

tickets: Any
queues: Any
kv: Any
forward: Any
model: Any
session: Any
runtime: Any
Err: Any
LogLevel: Any

try:
    from componentize_py_types import Err
    from wit_world.imports import forward, kv, model, queues, runtime, session, tickets
    from wit_world.imports.types import LogLevel

    is_component = True
except ImportError:
    is_component = False
    tickets, queues, kv, forward, model, session, runtime = (SimpleNamespace() for _ in INTERFACES)

    class Err(Exception):  # type: ignore[no-redef]  # noqa: N818 - the bindings' name
        """A handler's error: `value` has `code` (an enum named like the WIT's) and `message`."""

        def __init__(self, value: Any) -> None:
            super().__init__(value)
            self.value = value

    class LogLevel(enum.Enum):  # type: ignore[no-redef]
        """The WIT enum `log-level`."""

        DEBUG = 0
        INFO = 1
        WARNING = 2
        ERROR = 3


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
