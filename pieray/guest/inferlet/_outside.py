"""What stands in for the bindings outside the component: namespaces that `_host.install` fills."""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

forward: Any = SimpleNamespace()
kv: Any = SimpleNamespace()
model: Any = SimpleNamespace()
queues: Any = SimpleNamespace()
runtime: Any = SimpleNamespace()
session: Any = SimpleNamespace()
tickets: Any = SimpleNamespace()


class Err(Exception):
    """A handler's error: `value` has `code` (an enum named like the WIT's) and `message`."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class LogLevel(enum.Enum):
    """The WIT enum `log-level`."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3
