"""The SDK of Python inferlets.

    from inferlet import Context, session

    async def main(prompt: str, max_tokens: int = 64):
        async with Context(prompt) as ctx:
            async for token in ctx.generate(max_tokens):
                session.send(token.text)
            return ctx.text

The modules `queue`, `kv`, `embeds`, `forward`, `adapters`, `model`, `session`, `runtime` and `tickets` are the
handlers; `Context` and its `generate` are written on them.
"""

from __future__ import annotations

from . import (
    adapters,
    chat,
    embeds,
    forward,
    grammar,
    http,
    kv,
    log,
    model,
    plans,
    queue,
    runtime,
    scratch,
    session,
    structured,
    tickets,
    tools,
)
from ._generation import Generation, Token
from ._loop import Deadlock
from .adapters import Adapter
from .context import Context
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
from .structured import Mismatch, collect_json
from .tools import Tool, run_tools, tool

__all__ = [
    "Adapter",
    "BadHandle",
    "Cancelled",
    "Context",
    "Deadline",
    "DeadlineExceeded",
    "Deadlock",
    "Denied",
    "DeviceLost",
    "Error",
    "Evicted",
    "Generation",
    "Grammar",
    "InvalidRequest",
    "Matcher",
    "Mismatch",
    "NotFound",
    "OutOfPages",
    "PeerLost",
    "Pending",
    "Plan",
    "Quota",
    "QuotaExceeded",
    "RemoteFailed",
    "Sampler",
    "SamplerHandle",
    "Token",
    "Tool",
    "Unsupported",
    "WrongType",
    "adapters",
    "chat",
    "collect_json",
    "embeds",
    "forward",
    "grammar",
    "greedy",
    "http",
    "kv",
    "log",
    "model",
    "plans",
    "queue",
    "run_tools",
    "runtime",
    "scratch",
    "session",
    "structured",
    "tickets",
    "tool",
    "tools",
]
