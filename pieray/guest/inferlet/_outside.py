"""What stands in for the bindings outside the component: namespaces that `_host.install` fills."""

from __future__ import annotations

import enum
from dataclasses import dataclass
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
programs: Any = SimpleNamespace()
queues: Any = SimpleNamespace()
runtime: Any = SimpleNamespace()
samplers: Any = SimpleNamespace()
scratch: Any = SimpleNamespace()
session: Any = SimpleNamespace()
store: Any = SimpleNamespace()
tickets: Any = SimpleNamespace()


@dataclass(frozen=True)
class Err(Exception):
    """A handler's error, frozen as that of componentize-py: `value` has `code` (an enum of the WIT) and `message`."""

    value: Any


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
