"""Grammars of one tenant hold up no plan of another's."""

from __future__ import annotations

import time
from typing import Any

from programs import program

FLOOD = program(
    '''
import asyncio, json
from inferlet import Context, session

def schema(salt, size):
    """About `size` bytes that take the compiler its time; no other is like it."""
    parts = {f"p{salt}_{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i % 9 + 2}}}x{i}$"} for i in range(size // 60)}
    return {"type": "object", "properties": parts}

async def one(salt, size):
    async with Context() as ctx:
        ctx.append("x")
        session.send("began")
        await ctx.generate(4, schema=schema(salt, size))

async def main(count=40, size=135_000):
    await asyncio.gather(*(one(salt, size) for salt in range(count)), return_exceptions=True)
''',
    "grammar-flood",
)
TRIVIAL = program(
    '''
from inferlet import Context, Grammar, runtime

async def main(salt="a"):
    """Seconds that a grammar nobody has compiled yet and its plan take."""
    began = runtime.monotonic()
    async with Context() as ctx:
        ctx.append("x")
        await ctx.generate(4, schema=Grammar.regex(f"[0-9]{{1,4}}{salt}"))
    return runtime.monotonic() - began
''',
    "grammar-trivial",
)


def test_large_schemas_of_one_tenant_hold_up_no_plan_of_anothers(engine: Any) -> None:
    """40 plans with 40 schemas of 135 KB: before, another tenant's first token came after 33 s."""
    tenant = engine.tenant
    number = iter(range(1000))

    def trivial() -> float:
        seconds: float = engine.launch(TRIVIAL, salt=f"{next(number)}").result(timeout=120)
        return seconds

    try:
        trivial()
        alone = min(trivial() for _ in range(3))
        engine.tenant = "greedy"
        flood = engine.launch(FLOOD)
        events = iter(flood)
        for _ in range(40):
            next(events)
        engine.tenant = "modest"
        time.sleep(2.0)  # compilations are under way in both actors
        beside = sorted(trivial() for _ in range(7))
        assert not flood.is_done
        flood.kill()
        print(f"alone {alone:.3f} s; beside {beside}")
        assert beside[3] < 20 * alone + 0.5
    finally:
        engine.tenant = tenant
