"""Methods that draw several tokens a pass: the text is the greedy one token for token, in fewer passes."""

from __future__ import annotations

from typing import Any

import pytest
from library import Reference, questions, run_all

METHODS = ("speculative-decoding", "speculative-tree", "jacobi-decoding", "lookahead-decoding")


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Held-out questions of three kinds: repetitions pay most."""
    return [question for task in ("repeat", "add2", "extract") for question, _, _ in questions(task, 6)]


@pytest.mark.parametrize("method", METHODS)
def test_the_text_is_greedy_and_takes_fewer_passes(engine: Any, asked: list[str], method: str) -> None:
    inputs = [{"prompt": question, "max_tokens": 48, "chat": True} for question in asked]
    plain, fast = (run_all(engine, name, inputs) for name in ("text-completion", method))
    assert [one["text"] for one in fast] == [one["text"] for one in plain]
    passes, tokens = (sum(one[key] for one in fast) for key in ("num_passes", "num_tokens"))
    assert all(one["num_passes"] <= one["num_tokens"] for one in fast)
    assert passes < 0.9 * tokens, f"{method}: {passes} passes for {tokens} tokens"


@pytest.mark.library
@pytest.mark.parametrize("block", [1, 2, 5, 16])
def test_jacobi_is_greedy_for_any_block(engine: Any, asked: list[str], block: int) -> None:
    inputs = [{"prompt": question, "max_tokens": 31, "chat": True} for question in asked]
    plain = run_all(engine, "text-completion", inputs)
    fast = run_all(engine, "jacobi-decoding", [{**one, "block": block} for one in inputs])
    assert [one["text"] for one in fast] == [one["text"] for one in plain]


@pytest.mark.library
@pytest.mark.parametrize(("window", "ngram", "num_guesses"), [(1, 2, 1), (3, 3, 2), (8, 5, 6)])
def test_lookahead_is_greedy_for_any_window(
    engine: Any, asked: list[str], window: int, ngram: int, num_guesses: int
) -> None:
    inputs = [{"prompt": question, "max_tokens": 31, "chat": True} for question in asked]
    plain = run_all(engine, "text-completion", inputs)
    options = {"window": window, "ngram": ngram, "num_guesses": num_guesses}
    fast = run_all(engine, "lookahead-decoding", [{**one, **options} for one in inputs])
    assert [one["text"] for one in fast] == [one["text"] for one in plain]


def test_constrained_speculation_writes_the_json_of_masked_decoding(engine: Any, reference: Reference) -> None:
    items = questions("extract", 8)
    found = run_all(engine, "constrained-speculation", [{"prompt": question} for question, _, _ in items])
    assert [one["text"] for one in found] == [right for _, right, _ in items]
    for one, (_, right, _) in zip(found, items, strict=True):
        assert one["num_forced"] > 0, "the keys are not drawn"
        assert one["num_passes"] < 0.7 * len(reference.encode(right))
