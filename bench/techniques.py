"""What each inferlet of the library asks of the engine, and what its method costs over a plain completion endpoint.

Each runs once without arguments, on the embedded model and an engine of its own, with `bench/guest/counting.py` before
its source.  A row has:

* `drawn`: tokens of output; `calls` of handlers for each, those of children included; `forwards`: passes and steps of
  plans for each.
* `computed`: tokens that the engine has run; `least`: those that the method needs, each token in its place once.
* `requests`, `tokens_again`: what a client of a completion endpoint without a cache would send for the same method: a
  request for each start of a plan and each pass that is looked at, with the whole text so far.

    python bench/techniques.py [--table docs/inferlets.md]

Exit status 1 if `computed` of all of them is over 1.05 times their `least`; `above` names those for which it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from common import machine

import pieray
from pieray.programs.sources import embedded_inferlets, inferlets_folder, resolve

COUNTING = (Path(__file__).parent / "guest" / "counting.py").read_text()
ENDING = """

_main = main


@_wraps(_main)
async def main(**given):
    try:
        result = _main(**given)
        return await result if hasattr(result, "__await__") else result
    finally:
        _sent()
"""
ELSEWHERE = {
    "approval", "chat", "describe-image", "file-summary", "http-fetch", "mcp-tools", "openai-embeddings",
    "openai-generate", "completion-c", "completion-js", "completion-rust", "draft-model", "cascade",
}  # fmt: skip
"""They wait for a person, a file or a request, are not written in Python, or want a second model."""
FAMILIES = {"agent-swarm", "map-reduce", "soft-prompt", "supervisor"}
"""Their children compute, or they have no tokens: what they ask for is not followed."""
EVICT = pieray.ProgramSource(
    "evict",
    "evict.py",
    """
from inferlet import OutOfPages, kv

async def main(count):
    pages = kv.alloc(count)
    for num_leased in range(64):  # ahead of need: so many it has already
        try:
            await kv.reserve(count - num_leased)
            break
        except OutOfPages:
            pass
    else:
        raise AssertionError("nothing was evicted")
    kv.free(pages)
""",
)
"""Takes all pages once, so that nothing of an earlier run is found."""
NUM_PAGES = 2048
PAGE_SIZE = 4
"""Tokens: to prompts of 15, as pages of 16 are to prompts of 60."""
MOST = 1.05
BEGIN, END = "<!-- made by bench/techniques.py -->", "<!-- end -->"


def measured(engine: pieray.Engine, name: str) -> dict[str, Any]:
    """One run of an inferlet, traced and counted."""
    source = resolve(name)
    counted = dataclasses.replace(source, name=f"counted-{name}", source=COUNTING + "\n" + source.source + ENDING)
    engine.launch(EVICT, count=NUM_PAGES).result(timeout=60)
    process = engine.launch(counted, {}, trace=True)
    result = process.result(timeout=120)
    told = [json.loads(event.text) for event in process.events() if event.kind == "data"]
    facts = next(one["value"] for one in told if one["name"] == "counted")
    family = engine.trace(process.id)
    calls = sum(len(one["calls"]) + one["num_dropped"] for one in family)
    if isinstance(result, dict) and "num_passes" in result and "num_tokens" in result:
        facts["drawn"] = result["num_tokens"]  # it samples rows whose tokens it does not take
    drawn = max(facts["drawn"], 1)
    follows = name not in FAMILIES
    return {
        "name": name,
        "lines": len(source.source.splitlines()),
        "drawn": facts["drawn"] if follows else None,
        "calls": round(calls / drawn, 1) if follows else None,
        "forwards": round(facts["forwards"] / drawn, 2) if follows else None,
        "computed": sum(one["tokens_computed"] for one in family),
        "least": facts["least"] if follows else None,
        "requests": facts["requests"] if follows else None,
        "tokens_again": facts["tokens_again"] if follows else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    shelf = embedded_inferlets()
    lines = [
        "| inferlet | origin | lines | tokens drawn | calls a token | forwards a token | tokens computed "
        "| requests to an endpoint | tokens there |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        name = row["name"]
        numbers = [row[key] for key in ("lines", "drawn", "calls", "forwards", "computed", "requests", "tokens_again")]
        cells = ["-" if number is None else f"{number:,}" for number in numbers]
        lines.append(f"| [{name}](../inferlets/{name}) | {shelf[name].origin or '-'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, help="a page whose table is written anew")
    parser.add_argument("names", nargs="*", help="inferlets; all if none is named")
    given = parser.parse_args()
    names = given.names or sorted(set(embedded_inferlets()) - ELSEWHERE)
    with pieray.start(namespace="bench-techniques", model={"page_size": PAGE_SIZE, "num_pages": NUM_PAGES}) as engine:
        rows = [measured(engine, name) for name in names]
    known = [row for row in rows if row["least"]]
    ratios = {row["name"]: round(row["computed"] / row["least"], 3) for row in known}
    overall = sum(row["computed"] for row in known) / max(sum(row["least"] for row in known), 1)
    print(json.dumps({
        "claim": "techniques",
        **machine(),
        "num_methods": len(rows),
        "computed_over_least": round(overall, 3),
        "target": MOST,
        "above": {name: ratio for name, ratio in ratios.items() if ratio > MOST},
        "tokens_again_over_computed": round(
            sum(row["tokens_again"] for row in known) / max(sum(row["computed"] for row in known), 1), 2
        ),
        "rows": rows,
    }))  # fmt: skip
    if given.table:
        page = given.table.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        given.table.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0 if overall <= MOST else 1


if __name__ == "__main__":
    assert inferlets_folder().exists()
    sys.exit(main())
