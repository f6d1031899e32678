"""The SDK of Python inferlets.

    from inferlet import Context, session

    async def main(prompt: str, max_tokens: int = 64):
        async with Context(prompt) as ctx:
            async for token in ctx.generate(max_tokens):
                session.send(token.text)
            return ctx.text

There is a module for each interface of the handler API (`kv`, `forward`, `plans`, `messaging`, `http`, ...);
`Context` and its `generate` are written on them, and so could you.
"""

from __future__ import annotations

from asyncio import TaskGroup, gather, sleep, timeout

from . import (
    adapters,
    chat,
    children,
    embeds,
    forward,
    grammar,
    http,
    images,
    kv,
    log,
    mcp,
    messaging,
    model,
    plans,
    queue,
    runtime,
    sampling,
    scratch,
    session,
    store,
    structured,
    tensor,
    tickets,
    tools,
)
from ._generation import Finish, Generation, Token
from ._loop import Deadlock
from .adapters import Adapter
from .children import Child, launch
from .context import Context, ask
from .errors import (
    BadHandle,
    Cancelled,
    Deadline,
    DeadlineExceeded,
    Denied,
    DeviceLost,
    Error,
    Evicted,
    InvalidRequest,
    NotFound,
    OutOfPages,
    Overloaded,
    PeerLost,
    Pending,
    Quota,
    QuotaExceeded,
    RemoteFailed,
    Unsupported,
    WrongType,
)
from .grammar import Grammar, Matcher
from .plans import Plan
from .sampler import Sampler, SamplerHandle, greedy
from .speculation import DraftModel
from .structured import Mismatch, collect_json
from .tools import Tool, run_tools, tool

__all__ = [
    "Adapter",
    "BadHandle",
    "Cancelled",
    "Child",
    "Context",
    "Deadline",
    "DeadlineExceeded",
    "Deadlock",
    "Denied",
    "DeviceLost",
    "DraftModel",
    "Error",
    "Evicted",
    "Finish",
    "Generation",
    "Grammar",
    "InvalidRequest",
    "Matcher",
    "Mismatch",
    "NotFound",
    "OutOfPages",
    "Overloaded",
    "PeerLost",
    "Pending",
    "Plan",
    "Quota",
    "QuotaExceeded",
    "RemoteFailed",
    "Sampler",
    "SamplerHandle",
    "TaskGroup",
    "Token",
    "Tool",
    "Unsupported",
    "WrongType",
    "adapters",
    "ask",
    "chat",
    "children",
    "collect_json",
    "embeds",
    "forward",
    "gather",
    "grammar",
    "greedy",
    "http",
    "images",
    "kv",
    "launch",
    "log",
    "mcp",
    "messaging",
    "model",
    "plans",
    "queue",
    "run_tools",
    "runtime",
    "sampling",
    "scratch",
    "session",
    "sleep",
    "store",
    "structured",
    "tensor",
    "tickets",
    "timeout",
    "tool",
    "tools",
]
