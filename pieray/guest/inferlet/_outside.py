"""What stands in for the bindings outside the component: namespaces that `_host.install` fills."""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

adapters: Any = SimpleNamespace()
chat: Any = SimpleNamespace()
children: Any = SimpleNamespace()
embeds: Any = SimpleNamespace()
forward: Any = SimpleNamespace()
grammar: Any = SimpleNamespace()
http: Any = SimpleNamespace()
kv: Any = SimpleNamespace()
mcp: Any = SimpleNamespace()
messaging: Any = SimpleNamespace()
model: Any = SimpleNamespace()
plans: Any = SimpleNamespace()
queues: Any = SimpleNamespace()
runtime: Any = SimpleNamespace()
samplers: Any = SimpleNamespace()
scratch: Any = SimpleNamespace()
session: Any = SimpleNamespace()
store: Any = SimpleNamespace()
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


class Access(enum.Enum):
    """The WIT enum `access`."""

    OWNER = 0
    TENANT = 1
    PUBLIC = 2


class GrammarKind(enum.Enum):
    """The WIT enum `grammar-kind`."""

    JSON_SCHEMA = 0
    REGEX = 1
    LARK = 2


class LinkKind(enum.Enum):
    """The WIT enum `link-kind`."""

    NONE = 0
    LINKED = 1
