"""Sampling on a GPU, a Triton program a row: temperature, top_k, top_p, min_p and the draw, without a sort.

A threshold (the k-th largest logit, or the last of the nucleus) is searched for in the bits of the logits' order, two
bits a pass over the row: no candidate list, no scratch memory, nothing that the host must see.  The reference is
`pieray.models.sampler.sample_torch`.  typical_p is left to it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (the body of a Triton kernel is not Python)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pieray.kernels.meta import DrawColumns

BLOCK, NUM_WARPS = 4096, 8
#: how many leading bits of a logit, as float32, tell all values of its dtype apart; even
KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}


@triton.jit
def _order(x):
    """uint32, ordered as the float32 x; both zeros are one."""
    bits = (x + 0.0).to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) == 1, ~bits, bits | 0x80000000)


@triton.jit
def _block(row_ptr, start, vocab, BLOCK: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    return at, tl.load(row_ptr + at, mask=at < vocab, other=-float("inf")).to(tl.float32)


@triton.jit
def _search(
    row_ptr, vocab, top, temperature, floor, goal, BY_COUNT: tl.constexpr, KEY_BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest key such that the tokens whose key is not below it, and not below `floor`, number or weigh `goal`."""
    found = tl.full((), 0, tl.uint32)
    for step in range(KEY_BITS // 2):
        unit = tl.full((), 1, tl.uint32) << (30 - 2 * step)
        first, second, third = found + unit, found + 2 * unit, found + 3 * unit
        above_first = tl.zeros((BLOCK,), tl.float32)
        above_second = tl.zeros((BLOCK,), tl.float32)
        above_third = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab, BLOCK):
            at, x = _block(row_ptr, start, vocab, BLOCK)
            key = _order(x)
            if BY_COUNT:
                weight = tl.where(at < vocab, 1.0, 0.0)
            else:
                weight = tl.where(key >= floor, tl.exp((x - top) / temperature), 0.0)
            above_first += tl.where(key >= first, weight, 0.0)
            above_second += tl.where(key >= second, weight, 0.0)
            above_third += tl.where(key >= third, weight, 0.0)
        found = tl.where(tl.sum(above_first.to(tl.float64), 0) >= goal, first, found)
        found = tl.where(tl.sum(above_second.to(tl.float64), 0) >= goal, second, found)
        found = tl.where(tl.sum(above_third.to(tl.float64), 0) >= goal, third, found)
    return found


@triton.jit
def _weights(x, top, temperature, threshold, log_min_p):
    """float64: exp of the scaled logits, 0 of what is filtered out."""
    scaled = (x - top) / temperature
    return tl.where((_order(x) >= threshold) & (scaled >= log_min_p), tl.exp(scaled), 0.0).to(tl.float64)


@triton.jit
def sample_kernel(
    logits_ptr,  # [R, vocab]
    rows_ptr,  # int64 [C]; not read unless HAS_ROWS
    temperature_ptr,
    top_p_ptr,
    log_min_p_ptr,
    top_k_ptr,
    uniform_ptr,
    token_ptr,  # int64 [C]
    is_bad_ptr,  # int32 [C]
    stride,
    vocab,
    HAS_ROWS: tl.constexpr,
    KEY_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0)
    row = place.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows_ptr + place)
    row_ptr = logits_ptr + row * stride
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    best_at = tl.zeros((BLOCK,), tl.int32)
    is_nan = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab, BLOCK):
        at, x = _block(row_ptr, start, vocab, BLOCK)
        is_nan |= (x != x).to(tl.int32)
        best_at = tl.where(x > best, at, best_at)
        best = tl.where(x > best, x, best)
    top = tl.max(best, 0)
    token = tl.min(tl.where(best == top, best_at, vocab), 0)
    is_bad = (tl.max(is_nan, 0) == 1) | (tl.abs(top) == float("inf"))
    tl.store(is_bad_ptr + place, is_bad.to(tl.int32))
    temperature = tl.load(temperature_ptr + place)
    if (temperature > 0) & (is_bad == 0):
        temperature = tl.maximum(temperature, 1e-6)
        threshold = tl.full((), 0, tl.uint32)
        top_k = tl.load(top_k_ptr + place)
        if (top_k > 0) & (top_k < vocab):
            threshold = _search(row_ptr, vocab, top, temperature, threshold, top_k, True, KEY_BITS, BLOCK)
        top_p = tl.load(top_p_ptr + place)
        if top_p < 1:
            mass = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, vocab, BLOCK):
                at, x = _block(row_ptr, start, vocab, BLOCK)
                mass += tl.where(_order(x) >= threshold, tl.exp((x - top) / temperature), 0.0)
            goal = top_p * tl.sum(mass.to(tl.float64), 0)
            last = _search(row_ptr, vocab, top, temperature, threshold, goal, False, KEY_BITS, BLOCK)
            threshold = tl.maximum(threshold, tl.minimum(last, _order(top)))  # the most likely one stays
        log_min_p = tl.minimum(tl.load(log_min_p_ptr + place), 0.0)
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, vocab, BLOCK):
            at, x = _block(row_ptr, start, vocab, BLOCK)
            total += _weights(x, top, temperature, threshold, log_min_p)
        goal = tl.load(uniform_ptr + place) * tl.sum(total, 0)
        running = tl.full((), 0.0, tl.float64)
        before = running
        crossed = tl.full((), -1, tl.int32)  # where the block begins in which the running sum passes the goal
        last_start = tl.full((), 0, tl.int32)
        for start in range(0, vocab, BLOCK):
            at, x = _block(row_ptr, start, vocab, BLOCK)
            part = tl.sum(_weights(x, top, temperature, threshold, log_min_p), 0)
            is_here = (crossed < 0) & (running + part > goal)
            crossed = tl.where(is_here, start, crossed)
            before = tl.where(is_here, running, before)
            running += part
            last_start = tl.where(part > 0, start, last_start)
        goal = tl.where(crossed < 0, float("inf"), goal)  # no block, by rounding: the last token that is kept
        at, x = _block(row_ptr, tl.where(crossed < 0, last_start, crossed), vocab, BLOCK)
        weights = _weights(x, top, temperature, threshold, log_min_p)
        passes = (before + tl.cumsum(weights, 0) > goal) & (weights > 0)
        token = tl.min(tl.where(passes, at, vocab), 0)
        token = tl.where(token < vocab, token, tl.max(tl.where(weights > 0, at, 0), 0))
    tl.store(token_ptr + place, token.to(tl.int64))


def sample_rows(
    logits: torch.Tensor, columns: DrawColumns, rows: torch.Tensor | None, tokens: torch.Tensor, is_bad: torch.Tensor
) -> None:
    """Draw from logits [R, vocab] (a row at a stretch), or from those of `rows` (int64 [C]), as `columns` say.

    `tokens` (int64 [C]) get the draws, and `is_bad` (int32 [C]) 1 where a logit is NaN or the largest is not finite,
    whose token means nothing.  A row's token depends on that row alone.
    """
    assert logits.stride(-1) == 1, "a row of logits lies at a stretch"
    if not len(tokens):
        return
    sample_kernel[(len(tokens),)](
        logits,
        tokens if rows is None else rows,
        columns.temperatures,
        columns.top_ps,
        columns.log_min_ps,
        columns.top_ks,
        columns.uniforms,
        tokens,
        is_bad,
        logits.stride(0),
        logits.shape[-1],
        HAS_ROWS=rows is not None,
        KEY_BITS=KEY_BITS[logits.dtype],
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )
