"""Rows as columns give what items of one token give, in both decoders and replayed; a bad one fails alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_model, u32
from loras import as_bytes, random_lora
from replayed import replayed

from pieray.errors import InvalidRequest, ModelError
from pieray.messages import Logits, Sample, Sampler
from pieray.models.adapter_file import AdapterFile
from pieray.models.batch import NO_ROWS, DecodeRows, ForwardItem
from pieray.models.config import ModelConfig
from pieray.models.decode_graphs import GraphedDecoder
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner
from pieray.models.sampler import choices_of
from pieray.models.weights import load_weights
from pieray.sched.device_steps import DeviceSteps

PAGES, PAGE, VOCAB = 96, 4, 96
RNG = np.random.default_rng(5)
LENGTHS = [1, 4, 11, 7, 3, 30]
PROMPTS = [RNG.integers(3, VOCAB, length) for length in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model("qwen3", path, head_dim=16)
    return path


@pytest.fixture(params=["c", "torch", "graphs"])
def runner(request: pytest.FixtureRequest, folder: Path) -> ModelRunner:
    config = ModelConfig.from_folder(folder)
    weights = load_weights(folder, config, torch.float32, "cpu")
    pool = KvPool(config, PAGES + 1, PAGE, torch.float32, "cpu")
    pool.num_pages, pool.scratch_slot = PAGES, PAGES * PAGE
    plain = Decoder(config, weights)
    graphed = replayed(plain)
    decoders: dict[str, Any] = {"c": CpuDecoder, "torch": Decoder, "graphs": lambda *_: graphed}
    return ModelRunner(config, decoders[request.param](config, weights), pool)


SAMPLERS = [
    Sampler(),
    Sampler(1.0, seed=3),
    Sampler(2.0, 20, 0.9, 0.01, 0.95, seed=4),
    Sampler(bias_tokens=u32([7]).tobytes(), bias_values=np.array([1e6], "<f4").tobytes()),
    Sampler(9.0, allowed=np.packbits(np.arange(VOCAB) == 5, bitorder="little").tobytes()),
    Sampler(0.7, seed=9),
]


def prefilled(runner: ModelRunner) -> DecodeRows:
    """A row behind each prompt, whose pages are scattered."""
    order = np.random.default_rng(1).permutation(PAGES).astype(np.uint32).reshape(len(PROMPTS), -1)
    items = [
        ForwardItem(pages, 0, u32(prompt), u32(np.arange(len(prompt))))
        for pages, prompt in zip(order, PROMPTS, strict=True)
    ]
    assert all(isinstance(one, list) for one in runner.step(items, [[] for _ in items]))
    kv_lens = np.array(LENGTHS)
    plain = {row: one for row, one in enumerate(SAMPLERS) if one.bias_tokens or one.allowed}
    return DecodeRows(
        u32(range(10, 16)),
        kv_lens.copy(),
        kv_lens,
        order[:, : max(LENGTHS) // PAGE + 1],
        choices_of(SAMPLERS, LENGTHS),
        plain,
        scored=np.array([1, 3]),
    )


def items_of(rows: DecodeRows) -> list[ForwardItem]:
    return [
        ForwardItem(rows.pages[row], int(rows.kv_lens[row]), rows.tokens[row : row + 1], u32(rows.positions[row, None]))
        for row in range(len(rows))
    ]


def test_rows_beside_items_are_items_of_one_token(runner: ModelRunner) -> None:
    rows = prefilled(runner)
    wanted = [[Sample(0, one, is_scored=row in rows.scored)] for row, one in enumerate(SAMPLERS)]
    results = runner.step(items_of(rows), wanted)
    expected = [value[0] if not isinstance(value[0], tuple) else int(value[0][0][0]) for value in results]
    scores = [float(results[row][0][1][0]) for row in (1, 3)]
    free = np.setdiff1d(np.arange(PAGES), rows.pages).astype(np.uint32)
    for beside in ([], [ForwardItem(free, 0, u32([9, 8, 7]), u32([0, 1, 2]))]):
        drawn, others = runner.decode(rows, beside, [[Logits(-1)] for _ in beside])
        assert drawn.tokens.tolist() == expected
        assert drawn.errors == {}
        np.testing.assert_allclose(drawn.scores, scores, rtol=1e-4, atol=1e-4)
        assert len(others) == len(beside)
    assert expected[3:5] == [7, 5]
    one, _ = runner.decode(rows.take(np.array([1, 4])), [], [])
    assert (one.tokens.tolist(), one.scores.shape) == ([expected[1], 5], (1,))


def test_a_mask_restricts_a_draw_further(runner: ModelRunner) -> None:
    rows = prefilled(runner)
    only = [np.packbits(np.isin(np.arange(VOCAB), ids), bitorder="little").tobytes() for ids in ([5, 9], [9])]
    rows.masks = {0: only[1], 4: only[0], 5: only[1]}
    drawn, _ = runner.decode(rows, [], [])
    assert drawn.tokens[[0, 4, 5]].tolist() == [9, 5, 9]
    rows.masks = {4: only[1]}
    drawn, _ = runner.decode(rows, [], [])
    assert list(drawn.errors) == [4]
    assert "allows no token" in drawn.errors[4].message


@pytest.mark.parametrize("name", ["tokens", "positions", "pages", "kv_lens", "samplers"])
def test_a_row_that_cannot_be_computed_fails_alone(runner: ModelRunner, name: str) -> None:
    rows = prefilled(runner)
    want, _ = runner.decode(rows, [], [])
    if name == "samplers":
        rows.samplers[1] = Sampler(allowed=b"abc")
    else:
        column = getattr(rows, name).copy()
        column[1] = PAGES * PAGE * 1000
        rows = replace(rows, **{name: column})
    drawn, _ = runner.decode(rows, [], [])
    assert isinstance(drawn.errors.pop(1), InvalidRequest)
    assert drawn.errors == {}
    good = [0, 2, 3, 4, 5]
    assert drawn.tokens[good].tolist() == want.tokens[good].tolist()
    assert drawn.scores[1] == pytest.approx(want.scores[1], abs=1e-4)


def test_a_poisoned_row_and_one_that_breaks_the_step_fail_alone(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = prefilled(runner)
    want, _ = runner.decode(rows, [], [])
    runner.pool.data[:, int(rows.pages[2, 0])] = torch.nan
    drawn, _ = runner.decode(rows, [], [])
    assert list(drawn.errors) == [2]
    assert isinstance(drawn.errors[2], ModelError)
    forward = runner.decoder.forward

    def breaks(batch: Any, pool: Any) -> torch.Tensor:
        if 13 in batch.tokens.tolist():
            raise RuntimeError("no memory")
        return forward(batch, pool)

    monkeypatch.setattr(runner.decoder, "forward", breaks)
    for fast in (CpuDecoder, GraphedDecoder):
        monkeypatch.setattr(fast, "decode_rows", lambda *_: None)
    item = items_of(rows)[0]
    with pytest.raises(ModelError, match="the step failed: no memory"):
        runner.decode(rows, [item], [[Sample(0)]])
    drawn, (beside,) = DeviceSteps(runner).compute(rows, [item], [[Sample(0)]])
    assert set(drawn.errors) == {2, 3}
    assert drawn.tokens[[0, 1, 4, 5]].tolist() == want.tokens[[0, 1, 4, 5]].tolist()
    assert isinstance(beside, list)
    drawn, results = runner.decode(NO_ROWS, [], [])
    assert (len(drawn.tokens), results) == (0, [])


@pytest.mark.parametrize("kind", ["c", "torch"])
def test_rows_of_adapters_lie_side_by_side(kind: str, folder: Path) -> None:
    config = ModelConfig.from_folder(folder)
    weights = load_weights(folder, config, torch.float32, "cpu")
    decoder: Any = CpuDecoder(config, weights) if kind == "c" else Decoder(config, weights)
    runner = ModelRunner(config, decoder, KvPool(config, PAGES, PAGE, torch.float32, "cpu"))
    rows = prefilled(runner)
    loaded = [
        runner.read_adapter(AdapterFile(f"a{i}", as_bytes(random_lora(folder, rank=4, seed=i)), 64.0), 1 << 30)
        for i in range(2)
    ]
    items = items_of(rows)
    for row, adapter in ((2, loaded[0]), (3, loaded[0]), (5, loaded[1])):
        items[row].adapter = adapter
    results = runner.step(items, [[Sample(0, one)] for one in SAMPLERS])
    rows.adapters = [(loaded[0], 2, 4), (loaded[1], 5, 6)]
    drawn, _ = runner.decode(rows, [], [])
    assert drawn.tokens.tolist() == [int(value[0]) for value in results]
    part, _ = runner.decode(rows.take(np.array([0, 3, 5])), [], [])
    assert part.tokens.tolist() == drawn.tokens[[0, 3, 5]].tolist()
