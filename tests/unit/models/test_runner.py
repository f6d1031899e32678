"""The runner: outputs together, items that fail alone, forks by copy, and greedy text equal to transformers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import Sequence, make_model, u32

import pieray
from pieray.errors import DeviceLost, InvalidRequest, ModelError
from pieray.messages import Distribution, Logits, Logprobs, Sample, Sampler
from pieray.models import batch
from pieray.models.batch import NO_ROWS, ForwardItem
from pieray.models.runner import ModelRunner
from pieray.sched.device_steps import DeviceSteps

PIE_TINY = Path(pieray.__path__[0]) / "assets" / "pie-tiny"
PROMPT = np.random.default_rng(3).integers(3, 96, 21)


def biased(token: int, values: np.ndarray, **fields: Any) -> Sampler:
    return Sampler(bias_tokens=u32([token]).tobytes(), bias_values=values.tobytes(), **fields)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    folder = tmp_path_factory.mktemp("model")
    make_model("llama", folder)
    return ModelRunner.load(folder, num_pages=64, page_size=8)


def test_all_outputs_of_a_step_describe_the_same_logits(runner: ModelRunner) -> None:
    item = Sequence(runner, 0, 4).item(PROMPT)
    some = Logprobs(-1, u32([5, 6]).tobytes())
    wanted = [Logits(), Sample(), Distribution(k=3), Distribution(-2), some, Logprobs(0, b""), Sample(0)]
    (result,) = runner.step([item], [wanted])
    assert isinstance(result, list)
    logits, greedy, (ids, probs), (all_ids, all_probs), logs, none, _ = result
    exact = torch.from_numpy(logits).softmax(-1).numpy()
    assert greedy == logits.argmax() == ids[0]
    np.testing.assert_allclose(probs, exact[ids], rtol=1e-6)
    assert (len(all_ids), round(float(all_probs.sum()), 5), len(none)) == (96, 1.0, 0)
    np.testing.assert_allclose(logs, np.log(exact[[5, 6]]), rtol=1e-5)
    assert (ids.dtype, probs.dtype, logs.dtype) == (np.uint32, np.float32, np.float32)


def test_an_invalid_item_fails_alone(runner: ModelRunner) -> None:
    good = Sequence(runner, 0, 4)
    (want,) = runner.step([good.item(PROMPT)], [[Logits()]])
    bad = ForwardItem(u32([9]), 0, u32([96]), u32([0]))
    too_long = ForwardItem(u32([9]), 8, u32([1]), u32([0]))
    items = [bad, Sequence(runner, 0, 4).item(PROMPT), too_long]
    first, second, third = runner.step(items, [[Sample()], [Logits()], [Sample()]])
    assert isinstance(first, InvalidRequest)
    assert isinstance(third, InvalidRequest)
    assert np.array_equal(second[0], want[0])


@pytest.mark.parametrize(
    "wanted",
    [
        Sample(21),
        Sample(-22),
        Sample(sampler=Sampler(allowed=b"x")),
        Sample(sampler=biased(96, np.ones(1, np.float32))),
        Sample(sampler=biased(9, np.array([np.nan], np.float32))),
        Sample(sampler=biased(9, np.array([np.inf], np.float32))),
        Sample(sampler=biased(9, np.ones(2, np.float32))),
        Logprobs(0, u32([96]).tobytes()),
        Distribution(k=-1),
    ],
)
def test_an_invalid_output_request_fails_its_item(wanted: Sample, runner: ModelRunner) -> None:
    (result,) = runner.step([Sequence(runner, 0, 4).item(PROMPT)], [[wanted]])
    assert isinstance(result, InvalidRequest)


def test_bias_and_mask_choose_the_token_and_a_chain_without_one_fails_alone(runner: ModelRunner) -> None:
    nothing, everything = bytes(12), b"\xff" * 12
    only_5 = np.packbits(np.arange(96) == 5, bitorder="little").tobytes()
    minus, plus = np.array([-np.inf], np.float32), np.array([1e6], np.float32)
    wanted = [
        Sample(sampler=one)
        for one in (
            Sampler(allowed=nothing),
            Sampler(allowed=only_5),
            biased(5, minus, allowed=only_5),
            biased(7, plus),
            Sampler(allowed=everything),
            Sampler(),
            Sampler(9.0, seed=1, allowed=only_5),
        )
    ]
    (result,) = runner.step([Sequence(runner, 0, 4).item(PROMPT)], [wanted])
    assert isinstance(result, list)
    assert isinstance(result[0], InvalidRequest)
    assert isinstance(result[2], InvalidRequest)
    assert "allows no token" in result[2].message
    assert (result[1], result[3], result[6]) == (5, 7, 5)
    assert result[4] == result[5]


def test_a_poisoned_context_fails_alone(runner: ModelRunner) -> None:
    clean, poisoned = Sequence(runner, 0, 4), Sequence(runner, 4, 4)
    runner.step([clean.item(PROMPT), poisoned.item(PROMPT)], [[], []])
    runner.pool.data[:, poisoned.pages[0]] = torch.nan
    try:
        results = runner.step([poisoned.item([5]), clean.item([5])], [[Sample()], [Sample(), Logits()]])
        assert isinstance(results[0], ModelError)
        assert "not finite" in results[0].message
        assert np.isfinite(results[1][1]).all()
    finally:
        runner.pool.data.zero_()


def test_a_step_that_fails_to_compute_is_retried_item_by_item(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = runner.decoder.forward

    def breaks_on_token_7(batch: object, pool: object) -> torch.Tensor:
        if 7 in batch.tokens.tolist():
            raise RuntimeError("no memory")
        return forward(batch, pool)

    monkeypatch.setattr(runner.decoder, "forward", breaks_on_token_7)
    items = [Sequence(runner, 4 * i, 4).item([token]) for i, token in enumerate((5, 7, 9))]
    first, second, third = DeviceSteps(runner).compute(NO_ROWS, items, [[Sample()]] * 3)[1]
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert isinstance(second, ModelError)


def test_an_item_may_want_nothing_and_a_step_may_be_empty(runner: ModelRunner) -> None:
    assert runner.step([], []) == []
    assert runner.step([Sequence(runner, 0, 4).item(PROMPT)], [[]]) == [[]]


def test_a_fork_by_copy_goes_on_like_its_parent(runner: ModelRunner) -> None:
    parent, child = Sequence(runner, 0, 4), Sequence(runner, 20, 4)
    runner.step([parent.item(PROMPT)], [[]])
    child.pages[:2] = parent.pages[:2]  # two full pages are shared, the third is copied
    runner.copy_tokens([(int(parent.pages[2]), 0, int(child.pages[2]), 0, len(PROMPT) - 16)])
    child.kv_len = parent.kv_len
    ((one,), (other,)) = runner.step([parent.item([5]), child.item([5])], [[Logits()], [Logits()]])
    assert np.array_equal(one, other)


def test_seeded_sampling_repeats_across_batches(runner: ModelRunner) -> None:
    wanted = [Sample(row, Sampler(1.0, seed=seed)) for seed in (4, 5) for row in range(-15, 0)]
    (alone,) = runner.step([Sequence(runner, 0, 4).item(PROMPT)], [wanted])
    items = [Sequence(runner, 8, 4).item(PROMPT[:5]), Sequence(runner, 0, 4).item(PROMPT)]
    together = runner.step(items, [[Sample(sampler=Sampler(2.0))], wanted])
    assert together[1] == alone
    assert len(set(alone)) > 5


@pytest.mark.slow
@pytest.mark.parametrize(("concurrent", "chunk"), [(1, 32), (7, 5), (32, 32)])
def test_greedy_text_equals_transformers_token_for_token(concurrent: int, chunk: int) -> None:
    """32 prompts x 64 tokens, continuous batching: a sequence that is done makes room for the next one."""
    prompts = [np.random.default_rng(seed).integers(3, 600, 3 + 9 * (seed // 8)) for seed in range(32)]
    runner = ModelRunner.load(PIE_TINY, dtype="float32", num_pages=32 * 8)
    waiting = [(index, Sequence(runner, 8 * index, 8)) for index in range(32)]
    running: list[tuple[int, Sequence]] = []
    texts: list[list[int]] = [[] for _ in prompts]
    while waiting or running:
        while waiting and len(running) < concurrent:
            running.append(waiting.pop(0))
        ids = [np.concatenate((prompts[i], texts[i])).astype(int) for i, _ in running]
        items = [one.item(known[one.kv_len : one.kv_len + chunk]) for (_, one), known in zip(running, ids, strict=True)]
        for (index, one), known, result in zip(
            running, ids, runner.step(items, [[Sample()]] * len(items)), strict=True
        ):
            if one.kv_len == len(known):
                texts[index].append(result[0])
        running = [(index, one) for index, one in running if len(texts[index]) < 64]
    assert texts == expected_texts(prompts)


_EXPECTED: list[list[list[int]]] = []


def expected_texts(prompts: list[np.ndarray]) -> list[list[int]]:
    """transformers.generate, greedy, no stopping; computed once, eight prompts of a length at a time."""
    if not _EXPECTED:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(PIE_TINY, dtype=torch.float32).eval()
        options = {
            "max_new_tokens": 64,
            "min_new_tokens": 64,
            "do_sample": False,
            "pad_token_id": 0,
            "eos_token_id": None,
        }
        with torch.inference_mode():
            groups = [torch.from_numpy(np.stack(prompts[start : start + 8])) for start in range(0, 32, 8)]
            _EXPECTED.append(
                [row for group in groups for row in model.generate(group, **options)[:, group.shape[1] :].tolist()]
            )
    return _EXPECTED[0]


class PoisonedDecoder:
    """A decoder whose device has died: whatever is launched on it fails, as plain RuntimeErrors do."""

    def __init__(self, error: Exception) -> None:
        self.device = torch.device("cuda:0")
        self.error = error
        self.calls = 0

    def forward(self, *_: object) -> torch.Tensor:
        self.calls += 1
        raise self.error

    adapt = embeddings = forward


def poisoned(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, error: Exception, *, is_healthy: bool) -> Any:
    """A runner on the CPU that takes its device for a GPU, and whose decoder raises."""
    decoder: Any = PoisonedDecoder(error)
    found = ModelRunner(runner.config, decoder, runner.pool)
    monkeypatch.setattr(ModelRunner, "is_healthy", lambda _: is_healthy)
    monkeypatch.setattr(batch, "build_batch", lambda *_: SimpleNamespace(rows=[], hidden=None))
    return found


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
        torch.AcceleratorError("CUDA error: 700"),
        torch.OutOfMemoryError("CUDA out of memory"),
        ValueError("anything else"),
    ],
    ids=["triton", "accelerator", "memory", "other"],
)
def test_any_error_on_a_dead_device_is_device_lost_and_nothing_is_tried_again(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    found = poisoned(runner, monkeypatch, error, is_healthy=False)
    items = [Sequence(runner, 0, 4).item(PROMPT), Sequence(runner, 4, 4).item(PROMPT)]
    with pytest.raises(DeviceLost, match="cuda:0 is dead: .*"):
        found.step(items, [[Sample()], [Sample()]])
    assert found.decoder.calls == 1
    with pytest.raises(DeviceLost):
        found.read_adapter(None, 1)


def test_an_error_on_a_healthy_device_fails_items_alone(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    found = poisoned(runner, monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), is_healthy=True)
    items = [Sequence(runner, 0, 4).item(PROMPT), Sequence(runner, 4, 4).item(PROMPT)]
    results = DeviceSteps(found).compute(NO_ROWS, items, [[Sample()], [Sample()]])[1]
    assert [type(result) for result in results] == [ModelError, ModelError]
    assert found.decoder.calls == 3


def test_a_cpu_is_always_healthy(runner: ModelRunner) -> None:
    assert runner.is_healthy()
