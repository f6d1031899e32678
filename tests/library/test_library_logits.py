"""Methods that are a formula over logits: what is drawn is what the formula says, on logits of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from library import Reference, run_one

PROMPTS = ("a big doctor", "the")


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def kept(likely: np.ndarray, mask: np.ndarray) -> np.ndarray:
    weights = np.where(mask, likely, 0.0)
    return weights / weights.sum()


# -- two contexts, one text


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.5), (0.02, 1.0)])
def test_contrastive_text_is_what_the_formula_says(
    engine: Any, reference: Reference, alpha: float, beta: float
) -> None:
    """The amateur sees the last token alone."""
    changed = False
    for prompt in PROMPTS:
        tokens = reference.encode(prompt)
        said = run_one(engine, "contrastive-decoding", prompt=prompt, alpha=alpha, beta=beta, max_tokens=12)["tokens"]
        for i, token in enumerate(said):
            line = tokens + said[:i]
            expert, amateur = reference.log_probs(line)[-1], reference.log_probs(line[-1:])[-1]
            scores = np.where(expert >= expert.max() + np.log(alpha), expert - beta * amateur, -np.inf)
            assert token == scores.argmax() or scores[token] > scores.max() - 1e-3
            changed |= token != expert.argmax()
    assert changed, "it is no greedy decoding"


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_context_aware_text_is_what_the_formula_says(engine: Any, reference: Reference, alpha: float) -> None:
    context, question = "12+7=91, 3+4=7, ", "12+7="
    found = run_one(engine, "context-aware-decoding", context=context, question=question, alpha=alpha, max_tokens=8)
    line, bare = reference.encode(context + question), reference.encode(question)
    for i, token in enumerate(found["tokens"]):
        said = found["tokens"][:i]
        informed, prior = reference.logits(line + said)[-1], reference.logits(bare + said)[-1]
        scores = (1 + alpha) * informed - alpha * prior
        assert token == scores.argmax() or scores[token] > scores.max() - 1e-3


# -- samplers, each against a definition of its own


def typical(likely: np.ndarray, p: float) -> np.ndarray:
    surprise = -np.log(likely)
    order = np.argsort(np.abs(surprise - (likely * surprise).sum()), kind="stable")
    count = int(np.searchsorted(np.cumsum(likely[order]), p) + 1)
    return kept(likely, np.isin(np.arange(len(likely)), order[:count]))


def tail_free(likely: np.ndarray, z: float) -> np.ndarray:
    order = np.argsort(-likely, kind="stable")
    bends = np.abs(np.diff(likely[order], 2))
    count = int((np.cumsum(bends) / bends.sum() <= z).sum()) + 1
    return kept(likely, np.isin(np.arange(len(likely)), order[:count]))


def eta(likely: np.ndarray, least: float) -> np.ndarray:
    entropy = -(likely * np.log(likely)).sum()
    return kept(likely, likely >= min(least, np.sqrt(least) * np.exp(-entropy)))


def top_n_sigma(logits: np.ndarray, n: float) -> np.ndarray:
    return kept(softmax(logits), logits >= logits.max() - n * logits.std())


def repetition(logits: np.ndarray, tokens: list[int], penalty: float) -> np.ndarray:
    changed = logits.copy()
    for token in set(tokens):
        changed[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    return softmax(changed)


def dry(logits: np.ndarray, tokens: list[int], multiplier: float, base: float, allowed_length: int) -> np.ndarray:
    changed = logits.copy()
    for token in range(len(logits)):
        longest = 0
        for at in (i for i, one in enumerate(tokens) if one == token):
            for length in range(1, at + 1):
                if tokens[at - length : at] == tokens[len(tokens) - length :]:
                    longest = max(longest, length)
        if longest >= allowed_length:
            changed[token] -= multiplier * base ** (longest - allowed_length)
    return softmax(changed)


def temperature_of(logits: np.ndarray, top: float, theta: float) -> np.ndarray:
    likely = softmax(logits)
    entropy = -(likely * np.log(likely)).sum()
    return softmax(logits / (top * 0.8 ** (theta / entropy)))


SAMPLERS = {
    "typical": (lambda logits, tokens: typical(softmax(logits), 0.8), {"p": 0.8}),
    "epsilon": (lambda logits, tokens: kept(softmax(logits), softmax(logits) >= 0.03), {"least": 0.03}),
    "eta": (lambda logits, tokens: eta(softmax(logits), 0.03), {"least": 0.03}),
    "top-a": (
        lambda logits, tokens: kept(softmax(logits), softmax(logits) >= 0.3 * softmax(logits).max() ** 2),
        {"a": 0.3},
    ),
    "top-n-sigma": (lambda logits, tokens: top_n_sigma(logits, 1.5), {"n": 1.5}),
    "tail-free": (lambda logits, tokens: tail_free(softmax(logits), 0.9), {"z": 0.9}),
    "repetition": (lambda logits, tokens: repetition(logits, tokens, 1.3), {"penalty": 1.3}),
    "dry": (
        lambda logits, tokens: dry(logits, tokens, 1.2, 1.5, 1),
        {"multiplier": 1.2, "base": 1.5, "allowed_length": 1},
    ),
    "entropy-temperature": (lambda logits, tokens: temperature_of(logits, 1.5, 0.4), {"top": 1.5, "theta": 0.4}),
}


def traced(engine: Any, reference: Reference, method: str, **given: Any) -> tuple[list[int], int, list[Any], Any]:
    """Tokens, those of the prompt, what could be drawn at each, and logits after each."""
    found = run_one(engine, "samplers", method=method, trace=True, ignore_eos=True, **given)
    tokens = found["tokens"]
    steps = [np.zeros(reference.model.config.vocab_size) for _ in found["steps"]]
    for row, step in zip(steps, found["steps"], strict=True):
        for token, weight in step.items():
            row[int(token)] = weight
    return tokens, len(tokens) - len(steps), steps, reference.logits(tokens)


@pytest.mark.parametrize("method", SAMPLERS)
def test_a_sampler_draws_from_what_its_formula_leaves(engine: Any, reference: Reference, method: str) -> None:
    formula, options = SAMPLERS[method]
    heat = 1.4
    tokens, first, steps, logits = traced(
        engine, reference, method, options=options, temperature=heat, max_tokens=24, prompt="the cat and the", seed=3
    )
    sizes = set()
    for i, weights in enumerate(steps):
        expected = formula(logits[first + i - 1] / heat, tokens[: first + i])
        np.testing.assert_allclose(weights / weights.sum(), expected, atol=2e-3)
        assert weights[tokens[first + i]] > 0, "what is drawn could be drawn"
        sizes.add(int((weights > 0).sum()))
    if method not in ("repetition", "dry", "entropy-temperature"):
        assert len(sizes) > 1, "it cuts, and not at one size"
        assert max(sizes) < len(steps[0])


def test_xtc_excludes_top_choices_as_often_as_it_should(engine: Any, reference: Reference) -> None:
    options = {"threshold": 0.1, "probability": 0.5}
    _tokens, first, steps, logits = traced(
        engine, reference, "xtc", options=options, temperature=1.0, max_tokens=120, prompt="the", seed=1
    )
    num_able = num_cut = 0
    for i, weights in enumerate(steps):
        likely = softmax(logits[first + i - 1])
        top = np.flatnonzero(likely >= 0.1)
        cut = np.isin(np.arange(len(likely)), top) & (likely > likely[top].min()) if len(top) else likely < 0
        is_cut = not weights[cut].any() and len(top) > 1
        np.testing.assert_allclose(weights / weights.sum(), kept(likely, ~cut) if is_cut else likely, atol=2e-3)
        num_able += len(top) > 1
        num_cut += is_cut
    assert num_able > 20
    assert abs(num_cut - num_able / 2) < 3 * np.sqrt(num_able / 4)


@pytest.mark.parametrize("tau", [0.8, 1.3])
def test_mirostat_steers_the_surprise_to_its_target(engine: Any, reference: Reference, tau: float) -> None:
    tokens, first, steps, logits = traced(
        engine, reference, "mirostat", options={"tau": tau}, max_tokens=200, temperature=1.6, prompt="the", seed=5
    )
    mu, surprises = 2 * tau, []
    for i, weights in enumerate(steps):
        likely = softmax(logits[first + i - 1] / 1.6)
        mask = -np.log2(likely) <= mu
        np.testing.assert_allclose(weights, kept(likely, mask if mask.any() else likely == likely.max()), atol=3e-3)
        surprise = -np.log2(weights[tokens[first + i]])
        mu -= 0.2 * (surprise - tau)
        surprises.append(surprise)
    assert np.mean(surprises[20:]) == pytest.approx(tau, abs=0.25)
