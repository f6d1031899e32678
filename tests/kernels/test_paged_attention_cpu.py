"""The C operator and its torch stand-in, against the reference."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from attention_cases import BASE, CASES, TOLERANCE, Case, make, scoring
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray.kernels import cc
from pieray.kernels.dispatch import attention
from pieray.kernels.meta import AttentionMeta
from pieray.kernels.paged_attention import cost, reference
from pieray.kernels.paged_attention_cpu import paged_attention_cpu
from pieray.kernels.paged_attention_torch import paged_attention_torch

needs_c = pytest.mark.skipif(cc.library() is None, reason="no C compiler")
SCALE = 0.2


def error(case: Case, out: torch.Tensor) -> float:
    q, kv, meta = make(case)
    return float((out.float() - reference(q, kv, meta, **scoring(case))).abs().max())


@needs_c
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_c_operator_equals_reference(case: Case) -> None:
    assert error(case, paged_attention_cpu(*make(case), **scoring(case))) < TOLERANCE[case.dtype]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_torch_stand_in_equals_reference(case: Case) -> None:
    assert error(case, paged_attention_torch(*make(case), **scoring(case))) < TOLERANCE[case.dtype]


requests = st.lists(
    st.integers(1, 30).flatmap(lambda kv_len: st.tuples(st.integers(0, kv_len), st.just(kv_len))),
    min_size=1,
    max_size=4,
).filter(lambda drawn: any(q_len for q_len, _ in drawn))
cases = st.builds(
    Case,
    name=st.just("drawn"),
    requests=requests.map(tuple),
    num_kv_heads=st.sampled_from([1, 2]),
    num_heads=st.sampled_from([2, 4, 6, 14]),
    head_dim=st.sampled_from([8, 16, 40, 64]),
    page_size=st.integers(1, 33),
    window=st.integers(0, 20),
    hidden=st.none() | st.floats(0, 1),
    softcap=st.sampled_from([0.0, 1.5]),
    has_sinks=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)


@needs_c
@settings(max_examples=examples(60))
@given(cases)
def test_c_operator_equals_reference_for_any_shape(case: Case) -> None:
    out = paged_attention_cpu(*make(case), **scoring(case))
    assert bool(out.isfinite().all())
    assert error(case, out) < TOLERANCE[case.dtype]


@needs_c
def test_a_row_has_the_same_bits_alone_and_in_a_batch() -> None:
    q, kv, meta = make(replace(BASE, hidden=0.3, head_dim=64))
    together = attention(q, kv, meta)
    for request, q_len in enumerate(meta.q_lens):
        start, end = meta.qo_indptr[request : request + 2].tolist()
        first, last = meta.page_indptr[request : request + 2].tolist()
        assert meta.mask_indptr is not None
        alone = AttentionMeta(
            qo_indptr=torch.tensor([0, q_len], dtype=torch.int32),
            page_indptr=torch.tensor([0, last - first], dtype=torch.int32),
            pages=meta.pages[first:last],
            kv_lens=meta.kv_lens[request : request + 1],
            causal=meta.causal[request : request + 1],
            q_lens=[q_len],
            max_kv_len=int(meta.kv_lens[request]),
            mask=meta.mask,
            mask_indptr=meta.mask_indptr[request : request + 1],
        )
        assert torch.equal(attention(q[start:end], kv, alone), together[start:end])


@pytest.mark.parametrize("operator", [paged_attention_cpu, paged_attention_torch])
def test_rows_that_see_nothing_give_zero(operator: object) -> None:
    case = replace(BASE, hidden=1.0, causal=(1, 0, 1, 1, 0, 1))
    q, kv, meta = make(case)
    out = operator(q, kv, meta, scale=SCALE)
    start, end = meta.qo_indptr[4:6].tolist()  # a request of several rows with a mask that hides all
    assert torch.equal(out[start:end], torch.zeros_like(out[start:end]))


@needs_c
def test_a_masked_slot_cannot_poison_a_row() -> None:
    q, kv, meta = make(replace(BASE, requests=((1, 20),), hidden=0.0))
    assert meta.mask is not None
    meta.mask[0] = 0b11110111
    clean = attention(q, kv, meta)
    kv[meta.pages[0], :, :, 3] = torch.nan
    assert torch.equal(attention(q, kv, meta), clean)


@needs_c
def test_more_threads_give_the_same_bits() -> None:
    q, kv, meta = make(BASE)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = attention(q, kv, meta)
        torch.set_num_threads(2)
        assert torch.equal(attention(q, kv, meta), one)
    finally:
        torch.set_num_threads(before)


def test_cost_counts_each_pair_once() -> None:
    _, _, meta = make(replace(BASE, requests=((1, 10), (3, 3))))
    moved, operations = cost(meta, num_heads=4, num_kv_heads=2, head_dim=8, itemsize=2)
    assert operations == 4 * (10 + 6) * 4 * 8
    assert moved == 2 * (2 * 4 * 4 * 8 + 2 * 13 * 2 * 8)


@needs_c
def test_concurrent_builds_share_one_cache(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIERAY_CACHE", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        paths = {path.result() for path in [pool.submit(cc.build) for _ in range(2)]}
    assert [path.name for path in cc.cache_folder().iterdir()] == [path.name for path in paths]


def test_without_a_compiler_torch_takes_over_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cc.shutil, "which", lambda _: None)
    cc.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert error(BASE, attention(*make(BASE), scale=SCALE)) < TOLERANCE[BASE.dtype]
        assert "no C compiler" in caplog.text
    finally:
        cc.library.cache_clear()


def test_the_cpu_path_imports_no_triton() -> None:
    code = "import sys, pieray.kernels.dispatch; print('triton' in sys.modules)"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "False"
