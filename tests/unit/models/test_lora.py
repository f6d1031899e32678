"""LoRA: an adapter gives what merged weights give, adapters share a batch, and a bad file is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families import Sequence, make_model
from loras import TARGETS, as_bytes, as_folder, merged, random_lora

from pieray.errors import InvalidRequest, ModelError, QuotaExceeded
from pieray.messages import Logits
from pieray.models.adapter_file import AdapterFile, read_adapter
from pieray.models.config import ModelConfig
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.runner import ModelRunner
from pieray.models.weights import load_weights

PROMPTS = [np.random.default_rng(seed).integers(3, 96, 9 + 4 * seed) for seed in range(5)]
ROOM = 1 << 30


def runner_of(folder: Path, kind: str) -> ModelRunner:
    runner = ModelRunner.load(folder, dtype="float32", num_pages=64, page_size=8)
    if kind == "torch":
        weights = load_weights(folder, runner.config, torch.float32, "cpu")
        runner.decoder = Decoder(runner.config, weights)
    elif not isinstance(runner.decoder, CpuDecoder):
        pytest.skip("there is no compiled library here")
    return runner


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    make_model(request.param, folder, head_dim=16)
    return folder


@pytest.fixture(params=["c", "torch"])
def runner(request: pytest.FixtureRequest, base: Path) -> ModelRunner:
    return runner_of(base, request.param)


def logits(runner: ModelRunner, adapters: list, prompts: list[np.ndarray], rows: range | None = None) -> list:
    """Logits of all rows (or `rows`) of each prompt, all in one step."""
    items = [Sequence(runner, 8 * i, 8).item(prompt) for i, prompt in enumerate(prompts)]
    for item, adapter in zip(items, adapters, strict=True):
        item.adapter = adapter
    wanted = [[Logits(row) for row in rows or range(len(item.tokens))] for item in items]
    results = runner.step(items, wanted)
    assert all(isinstance(result, list) for result in results), results
    return [np.stack(result) for result in results]


@pytest.mark.parametrize(
    ("rank", "targets", "alpha", "layers"),
    [
        (1, TARGETS, 2.0, None),
        (8, TARGETS, None, None),
        (16, ("q_proj", "v_proj"), 32.0, None),
        (5, ("k_proj", "up_proj", "down_proj"), 7.0, None),
        (33, ("o_proj", "gate_proj"), None, [2]),
        (4, ("v_proj",), 8.0, [0, 1]),
    ],
)
def test_an_adapter_gives_the_logits_of_merged_weights(
    base: Path, runner: ModelRunner, tmp_path: Path, rank: int, targets: tuple[str, ...], alpha: float, layers: list
) -> None:
    tensors = random_lora(base, rank, targets, seed=rank, layers=layers)
    adapter = runner.read_adapter(AdapterFile("a", as_bytes(tensors), alpha or 0.0), ROOM)
    kind = "c" if isinstance(runner.decoder, CpuDecoder) else "torch"
    expected = logits(runner_of(merged(base, tensors, tmp_path / "m", alpha), kind), [None], PROMPTS[2:3])[0]
    (given,) = logits(runner, [adapter], PROMPTS[2:3])
    np.testing.assert_allclose(given, expected, atol=1e-4)
    (plain,) = logits(runner, [None], PROMPTS[2:3])
    assert np.abs(plain - expected).max() > 0.01  # the adapter does something
    assert (adapter.rank, set(adapter.targets), adapter.alpha) == (rank, set(targets), alpha or rank)


def test_adapters_in_one_batch_equal_runs_alone(base: Path, runner: ModelRunner) -> None:
    files = [
        AdapterFile(str(r), as_bytes(random_lora(base, r, t, seed=r)), 4.0)
        for r, t in ((2, TARGETS), (8, ("q_proj", "v_proj")), (16, ("down_proj", "o_proj")))
    ]
    one, two, three = (runner.read_adapter(file, ROOM) for file in files)
    choice = [three, None, one, two, one]  # neighbours differ, and one adapter comes twice
    together = logits(runner, choice, PROMPTS)
    alone = [logits(runner, [adapter], [prompt])[0] for adapter, prompt in zip(choice, PROMPTS, strict=True)]
    for row, (batched, single) in enumerate(zip(together, alone, strict=True)):
        if isinstance(runner.decoder, CpuDecoder):
            assert np.array_equal(batched, single), row  # to the last bit, whatever the batch
        np.testing.assert_allclose(batched, single, atol=1e-4)
    last = logits(runner, choice, PROMPTS, range(-1, 0))  # only the last rows are wanted
    for batched, single in zip(last, alone, strict=True):
        np.testing.assert_allclose(batched[0], single[-1], atol=1e-4)


def test_rows_without_an_adapter_have_the_bits_that_they_have_without_any(base: Path, runner: ModelRunner) -> None:
    adapter = runner.read_adapter(AdapterFile("a", as_bytes(random_lora(base, 8))), ROOM)
    if isinstance(runner.decoder, CpuDecoder):
        before = logits(runner, [None, None], PROMPTS[:2])
        after = logits(runner, [None, adapter, None], [PROMPTS[0], PROMPTS[4], PROMPTS[1]])
        assert np.array_equal(before[0], after[0])
        assert np.array_equal(before[1], after[2])
    else:  # what torch gives a row may depend on the batch, but not on the adapters in it
        before = logits(runner, [None] * 3, PROMPTS[:3])
        after = logits(runner, [None, None, adapter], PROMPTS[:3])
        assert np.array_equal(before[0], after[0])
        assert np.array_equal(before[1], after[1])
        assert not np.allclose(before[2], after[2])


def test_a_decode_after_a_prefill_keeps_to_the_adapter(base: Path, runner: ModelRunner) -> None:
    adapter = runner.read_adapter(AdapterFile("a", as_bytes(random_lora(base, 4))), ROOM)
    (whole,) = logits(runner, [adapter], PROMPTS[:1])
    sequence, rows = Sequence(runner, 0, 8), []
    for token in PROMPTS[0]:
        item = sequence.item([token])
        item.adapter = adapter
        ((row,),) = runner.step([item], [[Logits()]])
        rows.append(row)
    np.testing.assert_allclose(np.stack(rows), whole, atol=1e-4)


def test_a_model_in_bfloat16_takes_adapters(base: Path) -> None:
    runner = ModelRunner.load(base, dtype="bfloat16", num_pages=64, page_size=8)
    exact = ModelRunner.load(base, dtype="float32", num_pages=64, page_size=8)
    file = AdapterFile("a", as_bytes(random_lora(base, 8, size=0.5)))
    (rough,) = logits(runner, [runner.read_adapter(file, ROOM)], PROMPTS[:1])
    (fine,) = logits(exact, [exact.read_adapter(file, ROOM)], PROMPTS[:1])
    (plain,) = logits(exact, [None], PROMPTS[:1])
    assert np.abs(rough - fine).mean() < 0.1 * np.abs(plain - fine).mean()


def test_rank_stabilized_scaling_and_other_names(base: Path, tmp_path: Path) -> None:
    runner = runner_of(base, "torch")
    tensors = random_lora(base, 16, prefix="")
    folder = as_folder(tensors, tmp_path / "rs", lora_alpha=8, use_rslora=True)
    file = read_adapter("rs", folder, max_bytes=ROOM)
    assert (file.alpha, file.is_rank_stabilized) == (8.0, True)
    (given,) = logits(runner, [runner.read_adapter(file, ROOM)], PROMPTS[:1])
    expected = logits(runner_of(merged(base, tensors, tmp_path / "m", alpha=8 * 4), "torch"), [None], PROMPTS[:1])[0]
    np.testing.assert_allclose(given, expected, atol=1e-4)
    assert read_adapter("rs", folder, 3.0, max_bytes=ROOM).alpha == 3.0
    assert read_adapter("rs", folder / "adapter_model.safetensors", max_bytes=ROOM).is_rank_stabilized


def test_an_adapter_is_what_it_computes_whatever_its_name() -> None:
    ways = {
        AdapterFile("a", data, alpha, stable).digest()
        for data in (b"x", b"y")
        for alpha in (0.0, 8.0)
        for stable in (False, True)
    }
    assert len(ways) == 8
    assert AdapterFile("b", b"x", 8.0, True, source="elsewhere").digest() in ways


def test_settings_that_peft_writes_and_that_change_nothing_are_taken(tmp_path: Path) -> None:
    written = {
        "auto_mapping": None,
        "base_model_name_or_path": "m",
        "bias": "none",
        "inference_mode": True,
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        "rank_pattern": {"v_proj": 4},
        "exclude_modules": None,
        "qalora_group_size": 16,
        "peft_version": "0.18.0",
        "loftq_config": {},
        "eva_config": None,
        "use_qalora": False,
        "some_new_key": None,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **written}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert read_adapter("a", tmp_path, max_bytes=1 << 20).alpha == 16.0


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight" for half in "AB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.clear(), "no LoRA weight in it"),
        (lambda t: t.pop(B), "lora_A.weight' has no counterpart"),
        (lambda t: t.update({A: torch.zeros(4, 47)}), r"q_proj.lora_A.weight' has shape \(4, 47\).*implies \(4, 48\)"),
        (lambda t: t.update({B: torch.zeros(64, 5)}), r"lora_B.weight' has shape \(64, 5\).*implies \(64, 4\)"),
        (lambda t: t.update({A: torch.zeros(0, 48)}), "a rank is from 1 to 1024; given 0"),
        (lambda t: t.update({A: torch.zeros(2, 2, 48)}), "matrices of"),
        (lambda t: t.update({A: torch.zeros(4, 48, dtype=torch.int32)}), "torch.int32"),
        (lambda t: t.update({A: torch.full((4, 48), torch.nan)}), "not finite"),
        (lambda t: t.update({A.replace("q_proj", "x_proj"): torch.zeros(4, 48)}), "x_proj.*is no LoRA weight"),
        (lambda t: t.update({A.replace("s.0.", "s.3."): torch.zeros(4, 48)}), "layers are below 3; given 3"),
        (lambda t: t.update({A.removeprefix("base_model.model."): torch.zeros(4, 48)}), "given twice"),
        (lambda t: t.update({"model.embed_tokens.weight": torch.zeros(1)}), "embed_tokens.weight' is no LoRA"),
    ],
)
def test_a_bad_adapter_is_refused_with_its_tensor_named(base: Path, change: object, message: str) -> None:
    if ModelConfig.from_folder(base).family != "llama":
        pytest.skip("once is enough")
    runner, tensors = runner_of(base, "torch"), random_lora(base, 4)
    change(tensors)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message) as caught:
        runner.read_adapter(AdapterFile("mine", as_bytes(tensors)), ROOM)
    assert "'mine'" in str(caught.value)


def test_files_that_are_none_and_files_that_are_too_large(base: Path, tmp_path: Path) -> None:
    runner = runner_of(base, "torch")
    for data in (b"", b"\x80\x04pickle", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{}"):
        with pytest.raises(ModelError, match="not a readable safetensors file"):
            runner.read_adapter(AdapterFile("x", data), ROOM)
    data = as_bytes(random_lora(base, 8))
    size = runner.read_adapter(AdapterFile("x", data), ROOM).num_bytes
    with pytest.raises(QuotaExceeded, match=f"adapter_bytes: {size - 1} are left; adapter 'x' takes {size}"):
        runner.read_adapter(AdapterFile("x", data), size - 1)
    with pytest.raises(ModelError, match="model.adapter_bytes is 10; the file has"):
        read_adapter("x", data, max_bytes=10)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        read_adapter("x", tmp_path / "absent", max_bytes=ROOM)
    for config, message in (
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; supported: 'LORA'"),
        ({"lora_alpha": "2"}, "lora_alpha is '2'"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    ):
        with pytest.raises(ModelError, match=message):
            read_adapter("x", as_folder(random_lora(base, 1), tmp_path / "c", **config), max_bytes=ROOM)
    for name, alpha in (("", 1.0), ("a\nb", 1.0), ("a", float("nan")), ("a", -1.0)):
        with pytest.raises(InvalidRequest):
            read_adapter(name, data, alpha, max_bytes=ROOM)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("use_some_new_way", True),
        ("lora_bias", True),
        ("trainable_token_indices", {"embed_tokens": [1]}),
        ("modules_to_save", ["lm_head"]),
    ],
)
def test_settings_that_change_what_an_adapter_computes_are_refused_by_name(
    key: str, value: object, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", key: value}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=rf"adapter_config\.json: {key} is"):
        read_adapter("a", tmp_path, max_bytes=1 << 20)


@pytest.mark.parametrize("value", [True, False, "gaussian"])
def test_how_its_training_began_matters_only_if_the_base_model_was_changed(value: object, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "init_lora_weights": value}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert read_adapter("a", tmp_path, max_bytes=1 << 20).alpha == 0.0
