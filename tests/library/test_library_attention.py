"""Methods about what is attended to and kept: text as under the mask that they define, pages as they promise."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
import pytest
from library import Reference, run_all, run_one

LONG = "the quick brown fox jumps over the lazy dog, and so on, as 3+4=7, 20+31=51, 25+45=70, red blue red blue; "


@pytest.mark.parametrize(("method", "num_sinks"), [("attention-sink", 4), ("windowed-attention", 0)])
def test_pages_stay_flat_while_text_goes_on(engine: Any, method: str, num_sinks: int) -> None:
    lengths, window = (48, 160, 400), 48
    inputs = [{"prompt": LONG, "max_tokens": n, "window": window, "ignore_eos": True} for n in lengths]
    found = run_all(engine, method, inputs)
    assert [one["num_tokens"] for one in found] == list(lengths)
    most = -(-window // 16) + 1 + (num_sinks > 0)
    assert all(one["num_pages"] <= most for one in found), [one["num_pages"] for one in found]
    assert found[2]["tokens"][: len(found[0]["tokens"])] == found[0]["tokens"]


def test_windowed_text_is_that_of_its_mask(engine: Any, reference: Reference) -> None:
    window, prompt = 12, LONG[:60]
    found = run_one(engine, "windowed-attention", prompt=prompt, window=window, max_tokens=16, ignore_eos=True)
    tokens, first = found["tokens"], len(reference.encode(prompt))
    rows, columns = np.indices((len(tokens), len(tokens)))
    is_prompt = rows < first - 1  # read whole
    visible = (columns <= rows) & (is_prompt | (columns >= rows - window))
    assert tokens[first:] == list(reference.logits(tokens, visible=visible).argmax(-1)[first - 1 : -1])
    assert tokens[first:] != list(reference.logits(tokens).argmax(-1)[first - 1 : -1])


@pytest.mark.parametrize("keep", [2, 4])
def test_hierarchical_text_is_that_of_its_mask_and_pages_are_given_back(
    engine: Any, reference: Reference, keep: int
) -> None:
    document = [LONG[:90], LONG[20:110], LONG[10:100], LONG[5:95]]
    found = run_one(engine, "hierarchical-attention", document=document, prompt="12+7=", keep=keep, max_tokens=8)
    chunks = [*map(reference.encode, document), reference.encode("12+7=")]
    line = functools.reduce(operator.iadd, chunks, []) + found["tokens"]
    chunk_of = np.repeat(range(len(chunks)), [*map(len, chunks[:-1]), len(line) - sum(map(len, chunks[:-1]))])
    ends = np.cumsum([len(chunk) for chunk in chunks[:-1]])
    rows, columns = np.indices((len(line), len(line)))
    stands = np.zeros(len(line), dtype=bool)
    for end in ends:
        stands[end - keep : end] = True
    visible = (columns <= rows) & ((chunk_of[rows] == chunk_of[columns]) | stands[columns])
    first = sum(map(len, chunks))
    assert found["num_read"] == ends[-1]
    said = list(reference.logits(line, visible=visible).argmax(-1)[first - 1 :])
    assert found["tokens"] == said[: len(found["tokens"])]
    whole = -(-found["num_read"] // 16)
    assert found["num_pages"] < whole, (found["num_pages"], whole)


def test_modules_are_what_their_mask_and_positions_say_and_are_computed_once(engine: Any, reference: Reference) -> None:
    modules = ["3+4=7, 20+31=51, 8+8=16; ", "a brave red cat sees the kings, ", "25+45=70, 9+9=18, 7+5=12; "]
    texts = [reference.encode(text) for text in modules]
    seen: set[int] = set()
    for use in ([0, 2], [0, 1, 2], [2], [2, 1]):
        found = run_one(engine, "modular-caching", modules=modules, use=use, prompt="12+7=", max_tokens=8, ttl=60)
        prompt = reference.encode("12+7=")
        line, positions, owner = [], [], []
        for i in use:
            start = sum(map(len, texts[:i]))
            line += texts[i]
            positions += range(start, start + len(texts[i]))
            owner += [i] * len(texts[i])
        line += prompt + found["tokens"]
        positions += [sum(map(len, texts)) + i for i in range(len(prompt) + len(found["tokens"]))]
        owner += [-1] * (len(line) - len(owner))
        rows, columns = np.indices((len(line), len(line)))
        owners = np.array(owner)
        visible = (columns <= rows) & ((owners[rows] == owners[columns]) | (owners[rows] == -1))
        first = len(line) - len(found["tokens"])
        said = list(reference.logits(line, visible=visible, positions=positions).argmax(-1)[first - 1 :])
        assert found["tokens"] == said[: len(found["tokens"])]
        assert found["num_cached"] == len(seen & set(use))
        fresh = sum(len(texts[i]) for i in use if i not in seen)
        drawn = len(found["tokens"]) + (len(found["tokens"]) < 8)  # a stop token is drawn too
        assert found["num_computed"] == fresh + len(prompt) + drawn - 1
        seen |= set(use)
