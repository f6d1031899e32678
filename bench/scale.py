"""What several device groups give: where programs go, what they compute again, and what choosing a group costs.

content    a real engine of --groups groups on this machine: families of programs whose prompts begin alike, launched
           in random order.  Tokens computed by each policy over those of the least possible, and texts compared
choice     the policies alone, over --devices simulated groups: seconds for a choice, the busiest group over the
           mean, prompts found.  Groups are simulated (how long programs stay, what pages hold), the choice is not
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

from common import machine

import pieray
from pieray.host.device.group_policy import GROUP_POLICIES
from pieray.host.device.group_table import GroupTable

PROGRAM = pieray.ProgramSource(
    "share",
    "share.py",
    source="""
from inferlet import Context, runtime
async def main(tokens, max_tokens):
    async with Context(tokens) as ctx:
        generation = ctx.generate(max_tokens, stop_tokens=())
        await generation
    return generation.tokens, runtime.usage()["tokens_computed"]
""",
)
SHARED, OWN, DRAWN = 480, 20, 16
"""Tokens of a prompt that its family shares, of its own, and drawn behind it."""
CACHED = 2000
"""Pages that a simulated group keeps."""
CONTENT_OVER_ROUND_ROBIN = 0.5
CHOICE_P99_S = 0.001
IMBALANCE = 1.2


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which that part of them lies."""
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


# --- on a real engine ------------------------------------------------------------------------------


def prompts(num_families: int, per_family: int, rng: random.Random) -> list[list[int]]:
    """In random order."""
    families = [[rng.randrange(10, 600) for _ in range(SHARED)] for _ in range(num_families)]
    found = [[*family, *(rng.randrange(10, 600) for _ in range(OWN))] for family in families for _ in range(per_family)]
    rng.shuffle(found)
    return found


def run_content(given: argparse.Namespace) -> dict[str, Any]:
    """Tokens computed with each policy, launched `--width` at a time."""
    works = prompts(given.families, given.programs, random.Random(4))
    least = given.families * SHARED + len(works) * (OWN + DRAWN)
    texts: dict[str, list[Any]] = {}
    found: dict[str, Any] = {}
    for policy in GROUP_POLICIES:
        model = {"replicas": given.groups, "num_pages": 2048}
        with pieray.start(namespace=f"bench-scale-{policy}", model=model, group_policy=policy) as engine:
            began = time.perf_counter()
            running: deque[Any] = deque()
            said, computed = [], 0
            for tokens in works:
                running.append(engine.launch(PROGRAM, tokens=tokens, max_tokens=DRAWN))
                while len(running) >= given.width or (running and len(said) + len(running) == len(works)):
                    text, count = running.popleft().result(timeout=120)
                    said.append(text)
                    computed += count
            took = time.perf_counter() - began
            steps = [row["tokens"] for row in engine.status()["actors"] if row["role"] == "batcher"]
        texts[policy] = said
        found[policy] = {
            "computed": computed,
            "over_least": round(computed / least, 3),
            "seconds": round(took, 2),
            "tokens_of_groups": steps,
        }
    ratio = found["content"]["computed"] / found["round-robin"]["computed"]
    is_same = all(said == texts["content"] for said in texts.values())
    return {
        "claim": "content",
        "groups": given.groups,
        "programs": len(works),
        "families": given.families,
        **found,
        "content_over_round_robin": round(ratio, 3),
        "texts_equal": is_same,
        "ok": ratio <= CONTENT_OVER_ROUND_ROBIN and is_same,
    }


# --- the policies alone ----------------------------------------------------------------------------


class SimulatedCache:
    """The pages of the prompts that a group has had last."""

    def __init__(self, table: GroupTable, row: int) -> None:
        self._table, self._row = table, row
        self._prints: OrderedDict[int, None] = OrderedDict()

    def num_found(self, prints: Sequence[int]) -> int:
        return next((place for place, one in enumerate(prints) if one not in self._prints), len(prints))

    def keep(self, prints: Sequence[int]) -> None:
        for one in prints:
            self._prints[one] = None
            self._prints.move_to_end(one)
        self._table.know(self._row, prints)
        while len(self._prints) > CACHED:
            self._table.forget(self._row, [self._prints.popitem(last=False)[0]])


def simulate(policy: str, given: argparse.Namespace) -> dict[str, Any]:
    """`--launches` programs that come at a rate that keeps `--live` of them alive on each group in the mean; one in two
    has a prompt of one of `--texts` families, most of them of the same few."""
    choose, rng = GROUP_POLICIES[policy], random.Random(8)
    table = GroupTable()
    caches = [SimulatedCache(table, table.open()) for _ in range(given.devices)]
    num_live = given.live * given.devices
    leaving: list[int] = []
    families = [[rng.getrandbits(32) for _ in range(30)] for _ in range(given.texts)]
    took: list[float] = []
    imbalance: list[float] = []
    num_pages = num_found = 0
    for turn in range(given.launches):
        is_family = rng.random() < 0.5
        shared = families[min(int(rng.paretovariate(1.0)) - 1, given.texts - 1)] if is_family else []
        text = [*shared, *(rng.getrandbits(32) for _ in range(4))]
        began = time.perf_counter()
        row = choose(table, text, turn)
        table.choose(row, text)
        took.append(time.perf_counter() - began)
        num_pages += len(shared)
        num_found += min(caches[row].num_found(text), len(shared))
        caches[row].keep(text)
        leaving.append(row)
        if len(leaving) > num_live:
            place = rng.randrange(len(leaving))
            table.add_load(leaving[place], -1)
            leaving[place] = leaving[-1]
            leaving.pop()
        if turn > num_live and turn % 1000 == 0:
            imbalance.append(float(table.loads.max()) * given.devices / len(leaving))
    return {
        "choice_p50_us": round(1e6 * percentile(took, 0.5), 1),
        "choice_p99_us": round(1e6 * percentile(took, 0.99), 1),
        "imbalance_p50": round(percentile(imbalance, 0.5), 3),
        "imbalance_most": round(max(imbalance), 3),
        "found": round(num_found / max(num_pages, 1), 3),
    }


def run_choice(given: argparse.Namespace) -> dict[str, Any]:
    """Each policy over the same programs."""
    found = {policy: simulate(policy, given) for policy in GROUP_POLICIES}
    content = found["content"]
    is_ok = content["choice_p99_us"] <= 1e6 * CHOICE_P99_S and content["imbalance_most"] <= IMBALANCE
    return {"claim": "choice", "devices": given.devices, "launches": given.launches, **found, "ok": is_ok}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=["content", "choice"], choices=["content", "choice"])
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--families", type=int, default=16)
    parser.add_argument("--programs", type=int, default=8, help="of each family")
    parser.add_argument("--width", type=int, default=8, help="programs at one time")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--launches", type=int, default=1_000_000)
    parser.add_argument("--live", type=int, default=64, help="programs on each simulated group")
    parser.add_argument("--texts", type=int, default=2000)
    given = parser.parse_args()
    runs = {"content": run_content, "choice": run_choice}
    is_ok = True
    for name in given.only:
        found = runs[name](given)
        is_ok &= found["ok"]
        print(json.dumps({**found, **machine()}), flush=True)
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
