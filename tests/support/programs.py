"""Small inferlets for tests on a running engine."""

from __future__ import annotations

from pieray import ProgramSource


def program(source: str, name: str = "test") -> ProgramSource:
    return ProgramSource(name, f"{name}.py", source=source)


GENERATE = program(
    """
from inferlet import Context, session

async def main(prompt, max_tokens=24, temperature=0.0, seed=0):
    async with Context() as ctx:
        ctx.append(prompt)
        ids = []
        async for token in ctx.generate(max_tokens, temperature=temperature, seed=seed, stop_tokens=()):
            session.send(token.text)
            ids.append(token.id)
        return ids
""",
    "generate",
)

ECHO = program(
    """
from inferlet import session

async def main():
    count = 0
    while (text := await session.receive()) != "end":
        session.send(text.upper())
        count += 1
    return count
""",
    "echo",
)

SPIN = program("def main():\n    while True: pass\n", "spin")

HOLD_PAGES = program(
    """
from inferlet import Context, session

async def main(num_tokens=200):
    async with Context() as ctx:
        ctx.append([1] * num_tokens)
        await ctx.flush()
        session.send("held")
        await session.receive()
""",
    "hold-pages",
)
