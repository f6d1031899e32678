"""What componentize-py binds of `pieray/wit/pieray.wit`; outside of the component, what stands in for it.

`_bindings` alone calls it: an argument that does not fit its WIT type ends the whole guest here.
"""

from __future__ import annotations

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
        programs,
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
        programs,
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
    "tickets",
    "queues",
    "kv",
    "embeds",
    "samplers",
    "forward",
    "plans",
    "programs",
    "grammar",
    "adapters",
    "model",
    "chat",
    "session",
    "scratch",
    "messaging",
    "children",
    "http",
    "store",
    "mcp",
    "runtime",
)

__all__ = [
    "INTERFACES",
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
