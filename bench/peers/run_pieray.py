"""pieray: run_pieray.py FOLDER THREADS (bare|served) [SETTING=VALUE ...].

Bare is `ModelRunner.decode` alone, prompts in steps of 2,048 tokens; served is an inferlet a prompt on an engine of its
own, from the launches to the last result.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from line import claim_stdout, serve

say = claim_stdout()

import numpy as np  # noqa: E402

import pieray  # noqa: E402
from pieray.messages import Sample, Sampler  # noqa: E402
from pieray.models.batch import DecodeRows, ForwardItem  # noqa: E402
from pieray.models.tokenizer import Tokenizer, TokenizerSpec  # noqa: E402

MOST, LENGTH, PAGE, STEP = 32, 256, 16, 2048
folder, threads, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
settings: dict[str, Any] = {"dtype": "bfloat16", "threads": threads, **dict(one.split("=") for one in sys.argv[4:])}


def bare() -> None:
    from pieray.models.runner import ModelRunner
    from pieray.models.sampler import choices_of

    runner = ModelRunner.load(folder, num_pages=MOST * LENGTH // PAGE, page_size=PAGE, **settings)
    pages = np.arange(MOST * LENGTH // PAGE, dtype=np.uint32).reshape(MOST, -1)

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        count, length = len(prompts), len(prompts[0])
        positions = np.arange(length, dtype=np.uint32)
        firsts: list[int] = []
        for at in range(0, count, STEP // length):
            part = range(at, min(at + STEP // length, count))
            items = [ForwardItem(pages[row], 0, np.array(prompts[row], np.uint32), positions) for row in part]
            firsts += [one[0] for one in runner.step(items, [[Sample(-1, Sampler())] for _ in items])]
        kv_lens = np.full(count, length)
        choices = choices_of([Sampler()] * count, kv_lens.tolist())
        rows = DecodeRows(np.array(firsts, np.uint32), kv_lens.copy(), kv_lens, pages[:count], choices)
        found = [rows.tokens.copy()]
        for _ in range(num_tokens - 1):
            rows.tokens[:] = runner.decode(rows, [], [])[0].tokens
            rows.positions[:] += 1
            rows.kv_lens[:] += 1
            rows.choices["counter"] += np.uint64(1)
            found.append(rows.tokens.copy())
        return np.array(found).T.tolist()

    serve(say, pieray.__version__, generate)


def served() -> None:
    tokenizer = Tokenizer(TokenizerSpec.from_folder(folder))
    with (
        pieray.start({"path": folder, "device": "cpu", **settings}, namespace="bench-peers") as engine,
        ThreadPoolExecutor(MOST) as pool,
    ):

        def one(prompt: list[int], num_tokens: int) -> list[int]:
            text = tokenizer.decode(prompt)
            process = engine.launch("text-completion", prompt=text, max_tokens=num_tokens, ignore_eos=True)
            for _ in process:
                pass
            return [0] * int(process.result(timeout=120)["num_tokens"])

        def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
            return list(pool.map(lambda prompt: one(prompt, num_tokens), prompts))

        serve(say, pieray.__version__, generate)


{"bare": bare, "served": served}[kind]()
