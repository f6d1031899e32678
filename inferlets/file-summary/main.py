"""Receive a file, extract the fields of each of its lines, send the results back as a file."""

import json
from typing import Any

from inferlet import Context, scratch, session


async def main(max_tokens: int = 64, idle_timeout: float = 60.0) -> dict[str, Any]:
    """Lines that the model makes no JSON of are counted, and kept as text."""
    path = await session.receive_file(idle_timeout)
    lines = [line.strip() for line in scratch.read_text(path).splitlines() if line.strip()]
    name = f"{path.rpartition('/')[2].rpartition('.')[0] or 'summary'}.jsonl"
    num_failed = 0
    with scratch.open(name, "w") as out:
        for number, line in enumerate(lines, 1):
            fields = await fields_of(line, max_tokens)
            num_failed += isinstance(fields, str)
            print(json.dumps({"line": line, "fields": fields}), file=out)
            session.emit("progress", {"done": number, "of": len(lines)})
    session.send_file(name)
    return {"file": name, "num_lines": len(lines), "num_failed": num_failed}


async def fields_of(line: str, max_tokens: int) -> Any:
    async with Context() as ctx:
        ctx.user(f"Extract JSON: {line}")
        text = await ctx.collect_text(max_tokens)
    try:
        return json.loads(text)
    except ValueError:
        return text
