"""How a peer's process talks to peers_cpu.py: a line of JSON a round, and its answer.  Standard library alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[list[int]], int], list[list[int]]]


def claim_stdout() -> Callable[[object], None]:
    """What writes an answer: standard output, which libraries' own prints do not reach from here on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    return say


def serve(say: Callable[[object], None], version: str, generate: Generate) -> None:
    """Generate greedily for each line {"prompts": [[token]], "num_tokens": n} until there is none."""
    say({"version": version})
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        found = generate(asked["prompts"], asked["num_tokens"])
        took = time.perf_counter() - began
        lengths = {len(one) for one in found}
        assert lengths == {asked["num_tokens"]}, f"asked for {asked['num_tokens']} tokens each, got {lengths}"
        say({"took_s": took, "tokens": found})
