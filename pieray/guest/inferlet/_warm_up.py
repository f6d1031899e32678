"""Work done once, while the component is built, so that no inferlet starts cold.

The component is a snapshot of the interpreter after its imports: what is specialised, cached and allocated by
then is there in every instance, and what an instance does not write to, it shares with all others.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import _host, _program, _queues

SOURCE = """
import asyncio
from inferlet import Context, session

async def main(prompt: str, max_tokens: int = 4, stop: list[str] | str = "") -> dict:
    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, stop=stop)
        async for token in generation:
            session.send(token.text)
    return {"text": generation.text, "reason": generation.finish_reason}
"""
ROUNDS = 20


def warm_up() -> None:
    """Run a small inferlet against handlers that answer at once, then hand everything to the permanent generation."""
    with _answering_host():
        for _ in range(ROUNDS):
            _program.run_program(SOURCE, "main.py", '{"prompt": "a"}')
    gc.collect()
    gc.freeze()


@contextmanager
def _answering_host() -> Iterator[None]:
    """Handlers that answer with constants, in place of the bindings, which a build has no host for."""
    answers: dict[Any, dict[str, Callable[..., Any]]] = {
        _host.tickets: {"wait": lambda tickets, _: tickets, "take_tokens": lambda _: [97], "cancel": lambda _: None},
        _host.queues: {"create": lambda _: 1},
        _host.kv: {"page_size": lambda: 16, "alloc": lambda n: [1] * n, "free": lambda _: None},
        _host.forward: {"forward": lambda *_: 1, "sample": lambda *_: 2},
        _host.model: {"tokenize": lambda *_: [97], "info": lambda _: "{}", "stop_tokens": lambda _: [0],
                      "stream_open": lambda *_: 1, "stream_push": lambda *_: "a", "stream_close": lambda _: None},
        _host.session: {"send": lambda _: None},
        _host.runtime: {"random_u64": lambda: 1},
    }  # fmt: skip
    kept = [(module, name, getattr(module, name)) for module, names in answers.items() for name in names]
    for module, names in answers.items():
        for name, answer in names.items():
            setattr(module, name, answer)
    try:
        yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)
        _host.forget()
        _queues.reset()
