"""Methods about the form of what is written: it always has it, and what is drawn within it is what should be."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from library import Reference, questions, run_all, run_one

from tools.train_pie_tiny.grammar import parses


def test_text_under_an_ebnf_grammar_always_parses(engine: Any) -> None:
    number = r"\d\d?"
    expression = re.compile(rf"{number}\+{number}={number}(; {number}\+{number}={number}){{2}}")
    inputs = [{"temperature": heat, "seed": seed} for heat in (0.0, 1.0, 4.0) for seed in range(4)]
    found = run_all(engine, "ebnf-decoding", inputs)
    assert all(expression.fullmatch(one["text"]) for one in found), [one["text"] for one in found]
    assert len({one["text"] for one in found}) > 4
    nested = 'root ::= list # a list\nlist ::= "[" (item ("," item)*)? "]"\nitem ::= list | [a-c]+\n'
    for one in run_all(engine, "ebnf-decoding", [{"ebnf": nested, "temperature": 3.0, "seed": s} for s in range(6)]):
        if one["finish_reason"] == "stop":
            assert balanced(one["text"]), one


def balanced(text: str) -> bool:
    """Whether it is a list of lists and words of a, b, c."""
    while (shorter := re.sub(r"\[([abc]+(,[abc]+)*)?\]", "a", text)) != text:
        text = shorter
    return text == "a"


def test_only_what_is_valid_is_kept_and_a_broken_draft_is_left_where_it_breaks(engine: Any) -> None:
    items = questions("extract", 6)
    options = {"temperature": 2.3, "max_tokens": 64}
    inputs = [{"text": asked.removeprefix("Extract JSON: "), "seed": 10, **options} for asked, _, _ in items]
    found = run_all(engine, "output-validation", inputs)
    num_rejected = 0
    for one, given, (asked, _right, _) in zip(found, inputs, items, strict=True):
        tried = one["num_tries"]
        drawn = [{"prompt": asked, "chat": True, "seed": 10 + i, **options} for i in range(tried)]
        texts = [row["text"] for row in run_all(engine, "text-completion", drawn)]
        for rejected, text in zip(one["rejected"], texts, strict=False):
            draft = rejected["draft"].removesuffix("\ufffd")
            assert text.startswith(draft), (text, draft)
            num_rejected += len(draft) < len(text)
        if one["value"] is not None:
            assert texts[-1].startswith("{")
            assert all(str(word) in given["text"] for word in one["value"].values())
    assert sum(one["value"] is not None for one in found) >= 4
    assert num_rejected > 0, "nobody waits for the rest of a broken draft"


def test_a_template_keeps_its_words_and_its_holes_their_patterns(engine: Any, reference: Reference) -> None:
    items = questions("extract", 8)
    found = run_all(engine, "template-generation", [{"prompt": asked} for asked, _, _ in items])
    assert [one["text"] for one in found] == [right for _, right, _ in items]
    for one, (_, right, _) in zip(found, items, strict=True):
        assert one["num_generated"] < 0.6 * len(reference.encode(right)), "its own words are not generated"
    forms = {"prompt": "the", "chat": False, "temperature": 2.0, "template": "<{a:[xyz]{3}}|{b:\\d+}> {c}."}
    for one in run_all(engine, "template-generation", [{**forms, "seed": seed} for seed in range(5)]):
        assert re.fullmatch(r"<[xyz]{3}\|\d+> [^.]*\.", one["text"], re.S), one


def test_a_healed_prompt_goes_on_as_if_it_had_not_been_cut(engine: Any) -> None:
    subjects = [item.segments[0].text for _, _, item in questions("grammar", 40)]
    cut = [subject[:-3] for subject in subjects]  # within the last word
    texts = {}
    for is_healed in (True, False):
        rows = run_all(engine, "token-healing", [{"prompt": prompt, "is_healed": is_healed} for prompt in cut])
        texts[is_healed] = [row["text"] for row in rows]
    healed, plain = (
        sum(parses(prompt + text) for prompt, text in zip(cut, texts[way], strict=True)) for way in (True, False)
    )
    assert healed > plain + 5, f"{healed} sentences with healing, {plain} without, of {len(cut)}"


@pytest.mark.parametrize(("regex", "n"), [("1[0-4]|2[0-9]", 96), ("1[02]|[23][5-9]|4", 200)])
def test_aligned_samples_are_nearer_to_the_conditional_than_masked_ones(
    engine: Any, reference: Reference, regex: str, n: int
) -> None:
    prompt = "12+7="
    language = [str(i).zfill(width) for width in (1, 2) for i in range(10**width)]
    language = [text for text in language if re.fullmatch(regex, text)]
    line = reference.encode(prompt)
    stop = reference.stop
    cache: dict[str, np.ndarray] = {}

    def rows(prefix: str) -> np.ndarray:
        if prefix not in cache:
            cache[prefix] = reference.log_probs(line + reference.encode(prefix))[-1]
        return cache[prefix]

    def next_tokens(prefix: str) -> dict[str, int]:
        """What may follow in the language: a digit, or "" for its end."""
        found = {text[len(prefix)] for text in language if text.startswith(prefix) and len(text) > len(prefix)}
        tokens = {digit: reference.encode(digit)[0] for digit in found}
        return tokens | ({"": stop} if prefix in language else {})

    true, masked = {}, {}
    for text in language:
        log_true = log_masked = 0.0
        for i in range(len(text) + 1):
            allowed, row = next_tokens(text[:i]), rows(text[:i])
            token = allowed[text[i : i + 1]]
            log_true += row[token]
            log_masked += row[token] - np.log(np.exp(row[list(allowed.values())]).sum())
        true[text], masked[text] = math.exp(log_true), math.exp(log_masked)
    true = {text: value / sum(true.values()) for text, value in true.items()}
    found = run_one(engine, "grammar-aligned-decoding", prompt=prompt, regex=regex, n=n, seed=1)
    aligned = {row["text"]: row["aligned"] for row in found["samples"]}
    for row in found["samples"]:
        assert row["masked"] == pytest.approx(masked[row["text"]], rel=0.02, abs=1e-5)
    assert sum(row["count"] for row in found["samples"]) == n
    far_masked = sum(abs(masked[text] - true[text]) for text in language) / 2
    far_aligned = (1 - sum(aligned.values()) + sum(abs(aligned.get(t, 0.0) - true[t]) for t in language)) / 2
    assert far_aligned < 0.5 * far_masked, f"total variation {far_aligned:.4f} aligned, {far_masked:.4f} masked"
    counts = {row["text"]: row["count"] / n for row in found["samples"]}
    far_drawn = sum(abs(counts.get(text, 0.0) - true[text]) for text in language) / 2
    assert far_drawn < far_masked, f"of the samples themselves {far_drawn:.3f}, masked {far_masked:.3f}"
    assert found["num_passes"] < n, "where it has been, the model is not asked again"
