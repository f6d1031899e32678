"""A conversation that outlives its runs: each run says one thing, on the KV that the run before has left."""

import json
from typing import Any

from inferlet import Context, Evicted, NotFound, runtime, store


async def main(
    thread: str = "default", message: str = "12+7=? Think step by step.", max_tokens: int = 64, ttl: float = 86400
) -> dict[str, Any]:
    """`thread` names the conversation.  What was said before is there: as KV, or, if that is gone, as words."""
    name = f"persistent-session/{thread}"
    kept = await store.get(name, "")
    turns: list[list[str]] = json.loads(kept) if kept else []
    is_warm = True
    try:
        ctx = await Context.open(name)
    except (NotFound, Evicted):
        is_warm, ctx = False, Context()
        for said, replied in turns:
            ctx.user(said).assistant(replied)
    async with ctx:
        reply = await ctx.user(message).collect_text(max_tokens)
        turns.append([message, reply])
        await ctx.save(name, ttl=ttl)
        await store.put(name, json.dumps(turns), ttl=ttl)
        computed = runtime.usage()["tokens_computed"]
        return {"reply": reply, "num_turns": len(turns), "is_warm": is_warm, "num_computed": computed}
