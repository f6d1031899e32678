"""The SDK of Python inferlets.

    from inferlet import Context, session

    async def main(prompt: str, max_tokens: int = 64):
        async with Context(prompt) as ctx:
            async for token in ctx.generate(max_tokens):
                session.send(token.text)
            return ctx.text

The modules `queue`, `kv`, `embeds`, `forward`, `adapters`, `model`, `session`, `scratch`, `http`, `messaging`, `store`,
`runtime` and `tickets` are the handlers; `Context` and its `generate` are written on them.
"""

from __future__ import annotations

from . import (
    adapters,
    chat,
    children,
    embeds,
    forward,
    http,
    kv,
    log,
    mcp,
    messaging,
    model,
    queue,
    runtime,
    scratch,
    session,
    store,
    tickets,
)
from ._generation import Generation, Token
from ._loop import Deadlock
from .adapters import Adapter
from .children import Child
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
from .sampler import Sampler, SamplerHandle, greedy

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
    "Error",
    "Evicted",
    "Generation",
    "InvalidRequest",
    "NotFound",
    "OutOfPages",
    "PeerLost",
    "Pending",
    "Quota",
    "QuotaExceeded",
    "RemoteFailed",
    "Sampler",
    "SamplerHandle",
    "Token",
    "Unsupported",
    "WrongType",
    "adapters",
    "chat",
    "children",
    "embeds",
    "forward",
    "greedy",
    "http",
    "kv",
    "log",
    "mcp",
    "messaging",
    "model",
    "queue",
    "runtime",
    "scratch",
    "session",
    "store",
    "tickets",
]
