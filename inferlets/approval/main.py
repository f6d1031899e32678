"""A draft that a person approves, rejects or comments on, now or in a later run."""

import contextlib
import json
from typing import Any

from inferlet import Context, Evicted, NotFound, session, store

DAY = 86400


async def main(
    thread: str = "default", prompt: str = "Repeat: blue", max_tokens: int = 64, idle_timeout: float = 300.0
) -> dict[str, Any]:
    """`thread` names the talk: a later run with it goes on where this one has waited for `idle_timeout` seconds."""
    ctx, turns, is_resumed = await restored(thread, prompt)
    async with ctx:
        if not is_resumed:
            turns[-1]["draft"] = await ctx.collect_text(max_tokens)
        while True:
            session.emit("approve", {"draft": turns[-1]["draft"], "turn": len(turns)})
            ctx.idle()  # a person takes their time: memory leased ahead goes back
            answer = await answered(idle_timeout)
            if answer is None:
                await keep(thread, ctx, turns)
                break
            if answer in ("yes", "no"):
                await forget(thread)
                break
            turns.append({"said": answer})
            ctx.user(answer)
            await ctx.reserve(max_tokens)  # out of pages is known before anything is computed
            turns[-1]["draft"] = await ctx.collect_text(max_tokens)
    status = {"yes": "approved", "no": "rejected"}.get(answer or "", "waiting")
    return {"status": status, "draft": turns[-1]["draft"], "num_turns": len(turns), "is_resumed": is_resumed}


async def answered(timeout: float) -> str | None:
    try:
        return await session.receive(timeout)
    except TimeoutError:
        return None


async def restored(thread: str, prompt: str) -> tuple[Context, list[dict[str, str]], bool]:
    """The talk's context and turns, and whether it has begun already."""
    kept = await store.get(f"approval/{thread}", "")
    turns: list[dict[str, str]] = json.loads(kept) if kept else [{"said": prompt}]
    if kept:
        with contextlib.suppress(NotFound, Evicted):
            return await Context.open(f"approval/{thread}"), turns, True
    ctx = Context()
    for turn in turns:  # the KV is gone, or was never there: from the words
        ctx.user(turn["said"])
        if "draft" in turn:
            ctx.assistant(turn["draft"])
    return ctx, turns, bool(kept)


async def keep(thread: str, ctx: Context, turns: list[dict[str, str]]) -> None:
    await ctx.save(f"approval/{thread}", ttl=DAY)
    await store.put(f"approval/{thread}", json.dumps(turns), ttl=DAY)


async def forget(thread: str) -> None:
    if await store.delete(f"approval/{thread}"):
        with contextlib.suppress(NotFound, Evicted):
            await Context.delete(f"approval/{thread}")
