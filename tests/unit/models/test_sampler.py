"""The sampler: exact distributions, each filter against plain code, and draws that ignore the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pieray.messages import Sampler
from pieray.models.sampler import (
    add_bias,
    choices_of,
    distribution,
    filtered,
    logprobs,
    mask_tokens,
    sample,
    sample_torch,
    uniforms,
)

LOGITS = torch.from_numpy(np.random.default_rng(5).standard_normal((4, 40), dtype=np.float32) * 2)


def plain(logits: np.ndarray, params: Sampler) -> np.ndarray:
    """Probabilities after temperature, top_k, top_p, min_p and typical_p, one step at a time, one row, sorted lists."""
    scores = logits.astype(np.float64) / params.temperature
    probs = np.exp(scores - scores.max())
    if params.top_k:
        probs[probs < np.sort(probs)[-min(params.top_k, len(probs))]] = 0
    probs /= probs.sum()
    if params.top_p < 1:
        order = np.argsort(-probs)
        reached = 0.0
        for rank, token in enumerate(order):
            if rank and reached >= params.top_p:
                probs[token] = 0
            reached += probs[token]
    probs[probs < params.min_p * probs.max()] = 0
    probs /= probs.sum()
    if params.typical_p < 1:
        kept = np.flatnonzero(probs)
        entropy = -(probs[kept] * np.log(probs[kept])).sum()
        order = kept[np.argsort(np.abs(-np.log(probs[kept]) - entropy))]
        num_kept = int((np.cumsum(probs[order]) < params.typical_p).sum()) + 1
        probs[order[num_kept:]] = 0
    return probs / probs.sum()


def plain_choices(samplers: list[Sampler]) -> np.ndarray:
    return choices_of(samplers, [0] * len(samplers))


FILTERS = [
    Sampler(1.0),
    Sampler(0.5),
    Sampler(3.0, top_k=1),
    Sampler(1.0, top_k=7),
    Sampler(1.0, top_k=400),
    Sampler(1.0, top_p=0.0),
    Sampler(1.0, top_p=0.6),
    Sampler(2.0, top_p=0.97),
    Sampler(1.0, min_p=0.1),
    Sampler(1.0, min_p=1.0),
    Sampler(1.5, top_k=9, top_p=0.8, min_p=0.05),
    Sampler(1.0, typical_p=0.0),
    Sampler(1.0, typical_p=0.5),
    Sampler(0.8, typical_p=0.95),
    Sampler(1.3, top_k=20, top_p=0.95, min_p=0.01, typical_p=0.7),
]


def test_each_filter_equals_plain_code_in_one_mixed_batch() -> None:
    logits = LOGITS.repeat(len(FILTERS), 1)
    params = [given for given in FILTERS for _ in LOGITS]
    got = filtered(logits, plain_choices(params)).double().softmax(-1).numpy()
    for row, (one, given) in enumerate(zip(logits.numpy(), params, strict=True)):
        np.testing.assert_allclose(got[row], plain(one, given), atol=1e-6, err_msg=str(given))


@pytest.mark.slow
def test_filters_are_those_of_transformers() -> None:
    from transformers.generation import logits_process as hf

    for given in FILTERS[3:]:
        scores = LOGITS / given.temperature
        warpers = [hf.TopKLogitsWarper(given.top_k)] if given.top_k else []
        warpers += [hf.TopPLogitsWarper(given.top_p)] if 0 < given.top_p < 1 else []
        warpers += [hf.MinPLogitsWarper(given.min_p)] if given.min_p else []
        warpers += [hf.TypicalLogitsWarper(given.typical_p)] if 0 < given.typical_p < 1 else []
        for warper in warpers:
            scores = warper(None, scores)
        if given.top_p > 0 and given.typical_p > 0:  # transformers refuses 0
            want = scores.isinf()
            assert torch.equal(filtered(LOGITS, plain_choices([given] * len(LOGITS))).isinf(), want), given


@pytest.mark.parametrize("given", [Sampler(1.0, seed=1), Sampler(1.3, top_k=12, top_p=0.9, min_p=0.02, seed=2)])
def test_draws_follow_the_distribution(given: Sampler) -> None:
    draws = 20000
    tokens = sample(LOGITS[:1].expand(draws, -1), choices_of([given] * draws, range(draws))).numpy()
    expected = plain(LOGITS[0].numpy(), given) * draws
    counts = np.bincount(tokens, minlength=40)
    assert counts[expected == 0].sum() == 0
    likely = expected > 5
    statistic = float(((counts - expected)[likely] ** 2 / expected[likely]).sum())
    degrees = int(likely.sum()) - 1
    assert statistic < degrees + 4 * math.sqrt(2 * degrees)  # chi-square, four standard deviations


@pytest.mark.parametrize("vocab", [3, 40, 3000])
def test_c_and_torch_draw_the_same_tokens(vocab: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(1).standard_normal((660, vocab), dtype=np.float32) * 3)
    logits[::5] = logits[::5].round()  # ties
    logits[::7, 1:] = -torch.inf  # all but one hidden
    params = [FILTERS[row % len(FILTERS)] for row in range(660)]
    choices = choices_of(params, range(660))
    one, other = sample(logits, choices), sample_torch(logits, choices)
    some = np.random.default_rng(2).permutation(660)[:77]
    assert torch.equal(sample(logits, choices[some], some), one[some])
    assert int((one != other).sum()) <= 1  # a draw may fall between two roundings of the same sum


def test_a_draw_depends_on_seed_and_counter_not_on_the_batch() -> None:
    given = Sampler(1.0, top_p=0.9, seed=11)
    alone = [int(sample(LOGITS[:1], choices_of([given], [counter]))) for counter in range(50)]
    noise = torch.randn(2, 40)
    others = [Sampler(2.0, top_k=3), Sampler()]
    crowd = torch.cat([noise, LOGITS[:1]])
    batch = [int(sample(crowd, choices_of([*others, given], [1, 2, counter]))[2]) for counter in range(50)]
    assert alone == batch
    assert len(set(alone)) > 3
    other_seed = [
        int(sample(LOGITS[:1], choices_of([Sampler(1.0, top_p=0.9, seed=12)], [counter]))) for counter in range(50)
    ]
    assert other_seed != alone


def test_temperature_zero_is_greedy_and_a_tiny_one_nearly() -> None:
    want = LOGITS.argmax(-1).tolist()
    assert sample(LOGITS, choices_of([Sampler()] * 4, [0] * 4)).tolist() == want
    assert sample(LOGITS * 1000, choices_of([Sampler(1e-6)] * 4, [0] * 4)).tolist() == want


def test_top_p_beyond_the_first_guess_sorts_the_whole_vocabulary() -> None:
    flat = torch.zeros(1, 5000) - torch.arange(5000) * 1e-5
    kept = int(filtered(flat, plain_choices([Sampler(1.0, top_p=0.9)])).isfinite().sum())
    probs = flat.double().softmax(-1)[0]
    assert probs[: kept - 1].sum() < 0.9 <= probs[:kept].sum()


def test_uniforms_are_uniform_and_free_of_pattern() -> None:
    numbers = uniforms(np.full(20000, 7, np.uint64), np.arange(20000, dtype=np.uint64))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    assert choices_of([Sampler(seed=-1)], [2**64 + 3]) == choices_of([Sampler(seed=2**64 - 1)], [3])


def test_a_mask_leaves_only_what_it_allows() -> None:
    allowed = np.zeros(40, np.uint8)
    allowed[[3, 17]] = 1
    masked = mask_tokens(LOGITS, [None, np.packbits(allowed, bitorder="little").tobytes(), None, None])
    assert masked[1].isfinite().nonzero()[:, 0].tolist() == [3, 17]
    assert torch.equal(masked[[0, 2, 3]], LOGITS[[0, 2, 3]])
    tokens = sample(masked[1:2].expand(50, -1), choices_of([Sampler(5.0)] * 50, range(50)))
    assert set(tokens.tolist()) == {3, 17}


def test_a_bias_moves_the_distribution_and_bans() -> None:
    ids, values = np.array([3, 17], np.uint32), np.array([2.5, -math.inf], np.float32)
    biased = add_bias(LOGITS, [None, (ids, values), None, (ids[:1], values[:1])])
    assert torch.equal(biased[[0, 2]], LOGITS[[0, 2]])
    torch.testing.assert_close(biased[[1, 3], 3], LOGITS[[1, 3], 3] + 2.5)
    assert biased[1, 17] == -math.inf
    assert biased[3, 17] == LOGITS[3, 17]
    draws = sample(biased[1:2].expand(300, -1), choices_of([Sampler(20.0)] * 300, range(300)))
    assert set(draws.tolist()) == set(range(40)) - {17}


def test_distribution_and_logprobs_agree_with_softmax() -> None:
    probs = LOGITS.softmax(-1)
    ids, values = distribution(LOGITS, 5)
    assert torch.equal(values, probs.gather(-1, ids))
    assert ids.tolist() == probs.argsort(-1, descending=True)[:, :5].tolist()
    assert distribution(LOGITS, 0)[0].shape == (4, 40)
    torch.testing.assert_close(logprobs(LOGITS, ids), values.log())
