"""Decode steps in buckets: the same logits as without, whatever the batch; a fake capture stands in for CUDA's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_model, u32
from replayed import replayed

from pieray.messages import Hidden, Logits
from pieray.models.batch import ForwardItem
from pieray.models.config import ModelConfig
from pieray.models.decode_graphs import ROWS, Compute
from pieray.models.decoder import Decoder
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner
from pieray.models.warm_up import warm_up
from pieray.models.weights import load_weights

NUM_PAGES, PAGE_SIZE = 64, 4


class Recorder:
    """Captures as CUDA does: the computation runs again, over the same buffers."""

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, compute: Compute) -> Callable[[], object]:
        self.num_captured += 1
        return compute


def pool_with_scratch(config: ModelConfig) -> KvPool:
    """As on a GPU: one page more than is lent out."""
    pool = KvPool(config, NUM_PAGES + 1, PAGE_SIZE, torch.float32, "cpu")
    pool.num_pages, pool.scratch_slot = NUM_PAGES, NUM_PAGES * PAGE_SIZE
    return pool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model("qwen3", path, head_dim=16)
    return path


def make_runners(folder: Path) -> tuple[ModelRunner, ModelRunner, Recorder]:
    config, recorder = ModelConfig.from_folder(folder), Recorder()
    weights = load_weights(folder, config, torch.float32, "cpu")
    plain = ModelRunner(config, Decoder(config, weights), pool_with_scratch(config))
    graphed = ModelRunner(config, replayed(Decoder(config, weights), recorder), pool_with_scratch(config))
    return plain, graphed, recorder


def items_of(lengths: list[int], seed: int) -> list[ForwardItem]:
    """One token each behind `lengths` tokens; pages are scattered and none is shared."""
    rng = np.random.default_rng(seed)
    pages = rng.permutation(NUM_PAGES)
    items = []
    for length in lengths:
        count = length // PAGE_SIZE + 1
        items.append(ForwardItem(u32(pages[:count]), length, u32(rng.integers(3, 96, 1)), u32([length])))
        pages = pages[count:]
    return items


def logits_of(runner: ModelRunner, items: list[ForwardItem]) -> Any:
    results: list[Any] = runner.step(items, [[Logits(-1)] for _ in items])
    return [result[0] for result in results]


def assert_near(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[5], [5, 0, 17], [3, 9, 30, 1, 12], [1] * 9])
def test_logits_equal_those_without_graphs(folder: Path, lengths: list[int]) -> None:
    plain, graphed, _ = make_runners(folder)
    for seed in range(3):
        want, got = (logits_of(runner, items_of(lengths, seed)) for runner in (plain, graphed))
        assert_near(got, want)
    assert_near(graphed.pool.data[:, :NUM_PAGES], plain.pool.data[:, :NUM_PAGES])
    assert graphed.decoder.num_replayed == 3


def test_idle_rows_write_to_the_scratch_page_alone(folder: Path) -> None:
    _, graphed, _ = make_runners(folder)
    items = items_of([1] * 3, 0)  # of four rows
    logits_of(graphed, items)
    untouched = np.setdiff1d(np.arange(NUM_PAGES), np.concatenate([item.pages for item in items]))
    assert not graphed.pool.data[:, untouched].any()
    assert graphed.pool.data[:, NUM_PAGES].any()


def test_a_larger_batch_leaves_nothing_to_a_smaller_one(folder: Path) -> None:
    plain, graphed, recorder = make_runners(folder)
    for lengths in ([7, 3, 20, 11], [6, 2, 9]):
        assert_near(logits_of(graphed, items_of(lengths, 4)), logits_of(plain, items_of(lengths, 4)))
    assert recorder.num_captured == 1


def test_a_bucket_is_captured_once(folder: Path) -> None:
    _, graphed, recorder = make_runners(folder)
    for lengths in ([4], [9], [4, 5], [4, 5, 6], [1, 2, 3, 4]):
        logits_of(graphed, items_of(lengths, 0))
    assert recorder.num_captured == 3  # 1, 2 and 4 rows
    assert graphed.decoder.num_replayed == 5


def test_rows_without_logits_get_none(folder: Path) -> None:
    plain, graphed, _ = make_runners(folder)
    want, got = (runner.step(items_of([5, 9, 2], 1), [[Logits(-1)], [], [Logits(-1)]]) for runner in (plain, graphed))
    assert [len(one) for one in got] == [1, 0, 1]
    assert_near([got[0][0], got[2][0]], [want[0][0], want[2][0]])


@pytest.mark.parametrize("change", ["prefill", "mask", "hidden", "embeds", "too many"])
def test_other_steps_are_computed_as_they_are(folder: Path, change: str) -> None:
    plain, graphed, recorder = make_runners(folder)
    given = []
    for runner in (plain, graphed):
        items, wanted = items_of([5, 9], 2), [[Logits(-1)], [Logits(-1)]]
        if change == "prefill":
            items[0] = ForwardItem(items[0].pages, 3, u32([5, 6, 7]), u32([3, 4, 5]))
        elif change == "mask":
            items[0].mask = b"\x3f"
        elif change == "hidden":
            wanted[0] = [Logits(-1), Hidden(-1)]
        elif change == "embeds":
            items[0].embeds = u32([0]), np.ones((1, runner.config.hidden_size), np.float32)
        else:
            items = [items[0]] * (ROWS[-1] + 1)
            wanted = [[Logits(-1)]] * len(items)
        given.append([result[0] for result in runner.step(items, wanted)])
    assert recorder.num_captured == 0
    assert np.array_equal(*given)


def test_after_warming_up_no_decode_captures_anything(folder: Path) -> None:
    plain, graphed, recorder = make_runners(folder)
    assert warm_up(plain, 20, 64) == 0
    num_steps = warm_up(graphed, 20, 64)
    assert recorder.num_captured == 6  # 1, 2, 4, 8, 16 and 24 rows
    assert num_steps == 6 + 2  # and a prompt, alone and beside a decode
    for lengths in ([4], [1] * 20, [9, 30, 2]):
        assert_near(logits_of(graphed, items_of(lengths, 0)), logits_of(plain, items_of(lengths, 0)))
    assert recorder.num_captured == 6


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("out of luck")])
def test_warming_up_goes_on_behind_a_step_that_fails_and_ends_in_time(
    folder: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    _, graphed, recorder = make_runners(folder)
    fail_second(graphed, recorder, error)
    assert warm_up(graphed, 8, 64) == 4 + 2
    assert recorder.num_captured == 4
    assert str(error) in caplog.text
    assert warm_up(graphed, 8, 64, budget_s=-1.0) == 0
    assert "cut short" in caplog.text


def test_a_bucket_without_memory_for_its_graph_runs_without(folder: Path) -> None:
    plain, graphed, recorder = make_runners(folder)
    fail_second(graphed, recorder, torch.OutOfMemoryError("out of memory"))
    for lengths in ([4], [4, 5], [9, 30], [7]):
        assert_near(logits_of(graphed, items_of(lengths, 0)), logits_of(plain, items_of(lengths, 0)))
    assert graphed.decoder.num_replayed == 2, "those of one row"
    assert recorder.num_captured == 2, "it is not tried again"


def fail_second(graphed: ModelRunner, recorder: Recorder, error: Exception) -> None:
    """The second capture fails."""

    def capture(compute: Compute) -> Callable[[], object]:
        replay = recorder(compute)
        if recorder.num_captured == 2:
            raise error
        return replay

    graphed.decoder._capture = capture
