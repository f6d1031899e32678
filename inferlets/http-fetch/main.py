"""Fetch a page, and let the model extract the fields of its first line."""

import json
from typing import Any

from inferlet import Context, http, session


async def main(url: str, timeout: float = 10.0, max_tokens: int = 64) -> dict[str, Any]:
    """`fields` is what the model wrote, if that is JSON."""
    answer = (await http.get(url, headers={"Accept": "text/plain"}, timeout=timeout)).raise_for_status()
    line = next((line.strip() for line in answer.text.splitlines() if line.strip()), "")
    async with Context() as ctx:
        ctx.user(f"Extract JSON: {line}")
        text = await ctx.collect_text(max_tokens)
    session.send(text)
    return {"status": answer.status, "url": answer.url, "line": line, "text": text, "fields": parsed(text)}


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
