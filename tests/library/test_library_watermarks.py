"""Watermarks: the detector tells marked text from any other, and those that promise it leave probabilities alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from library import Reference, run_all

MARKS = ("watermarking", "gumbel-watermark", pytest.param("tournament-watermark", marks=pytest.mark.library))


@pytest.mark.parametrize("mark", MARKS)
def test_z_scores_separate_marked_from_unmarked_text(engine: Any, mark: str) -> None:
    """A text that has run into a loop says little, marked or not: the median is what a detector is good for."""
    prompts = ("the", "some", "many", "two", "every")
    marked = run_all(engine, mark, [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(prompts)])
    options = {"max_tokens": 160, "temperature": 1.3, "ignore_eos": True}
    plain = run_all(engine, "text-completion", [{"prompt": "the", "seed": seed, **options} for seed in range(5)])
    unmarked = run_all(engine, mark, [{"detect": one["text"]} for one in plain])
    other_key = run_all(engine, mark, [{"detect": one["text"], "key": 7} for one in marked])
    again = run_all(engine, mark, [{"detect": one["text"]} for one in marked])
    assert [one["z"] for one in again] == pytest.approx([one["z"] for one in marked])
    with_mark = sorted(one["z"] for one in marked)
    without = sorted(one["z"] for one in unmarked + other_key)
    told = f"marked {np.round(with_mark, 1)}, not marked {np.round(without, 1)}"
    assert np.median(with_mark) > 4.0, told
    assert with_mark[1] > without[-1], told
    assert without[-1] < 3.0, told
    assert abs(np.mean(without)) < 1.0, told


@pytest.mark.library
@pytest.mark.parametrize("mark", ["gumbel-watermark", "tournament-watermark"])
def test_over_keys_the_first_token_is_distributed_as_without_the_mark(
    engine: Any, reference: Reference, mark: str
) -> None:
    num_keys = 400
    inputs = [{"max_tokens": 1, "key": key, "seed": key, "temperature": 1.0} for key in range(num_keys)]
    counts = Counter(one["text"] for one in run_all(engine, mark, inputs))
    likely = np.exp(reference.log_probs(reference.encode("the"))[-1])
    for token in np.argsort(-likely)[:6]:
        seen, expected = counts[reference.decode([token])], num_keys * likely[token]
        assert abs(seen - expected) < 4 * np.sqrt(expected), (reference.decode([token]), seen, expected)
