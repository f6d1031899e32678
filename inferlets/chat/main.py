"""A conversation: each message of the client is a user's turn, each message back the assistant's reply."""

from typing import Any

from inferlet import Context, session


async def main(
    system: str = "",
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    idle_timeout: float = 300.0,
) -> dict[str, Any]:
    """Ends at an empty message, or when none comes for `idle_timeout` seconds.  Keeps the KV of earlier turns."""
    turns: list[dict[str, str]] = []
    async with Context() as ctx:
        if system:
            ctx.system(system)
        while message := await next_message(idle_timeout):
            ctx.user(message)
            reply = await ctx.collect_text(max_tokens, temperature=temperature, seed=seed)
            session.send(reply)
            turns.append({"user": message, "assistant": reply})
        return {"turns": turns, "num_tokens": ctx.position}


async def next_message(idle_timeout: float) -> str:
    try:
        return await session.receive(idle_timeout)
    except TimeoutError:
        return ""
