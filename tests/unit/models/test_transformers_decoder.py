"""Models that run through transformers' module with paged attention: equal to transformers' own attention, and what
cannot run so is refused by name before a weight is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeing
import torch
from families import (
    FAMILIES,
    HOSTED,
    PROMPTS,
    Sequence,
    all_logits,
    expected_logits,
    fork_difference,
    largest_difference,
    make_model,
    u32,
)
from loras import as_bytes, random_lora
from safetensors.torch import load_file, save_file

from pieray.errors import InvalidRequest, ModelError
from pieray.messages import Hidden, Logits
from pieray.models.adapter_file import AdapterFile
from pieray.models.architectures import ARCHITECTURES
from pieray.models.batch import ForwardItem
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner
from pieray.models.transformers_decoder import TransformersDecoder
from pieray.models.transformers_probe import hosted_config
from pieray.models.ways import way_of


def hosted(folder: Path, page_size: int = 4) -> ModelRunner:
    """A model through transformers' module, also if it has a native decoder."""
    config, found = hosted_config(folder)
    decoder = TransformersDecoder.load(folder, config, found, torch.float32, "cpu")
    return ModelRunner(config, decoder, KvPool(config, 64, page_size, torch.float32, "cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTED)
def test_hosted_logits_equal_transformers_and_forks_equal_copies(name: str, tmp_path: Path) -> None:
    model_type, changes = HOSTED[name]
    expected = expected_logits(make_model(model_type, tmp_path, **changes))
    runner = ModelRunner.load(tmp_path, num_pages=64, page_size=4)
    assert runner.way == "transformers"
    assert "no decoder of pieray's own" in runner.why or "supported" in runner.why
    assert largest_difference(runner, expected) < 1e-4
    assert fork_difference(runner) < 1e-5


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelRunner, ModelRunner, Path]:
    """One Gemma 2 through its native decoder and through transformers' module."""
    folder = tmp_path_factory.mktemp("gemma2")
    changes = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 6}
    make_model("gemma2", folder, **changes, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
    return ModelRunner.load(folder, num_pages=64, page_size=4), hosted(folder), folder


def compared(runners: tuple[ModelRunner, ModelRunner, Path], item: ForwardItem, outputs: list[Any]) -> None:
    """Both ways give the same outputs of one item beside another."""
    found = []
    for runner in runners[:2]:
        beside = Sequence(runner, 40, 4).item(PROMPTS[3])
        found.append(runner.step([beside, item], [all_logits(beside), outputs])[1])
    assert all(isinstance(one, list) for one in found), found
    for one, other in zip(*found, strict=True):
        assert np.abs(one - other).max() < 1e-4 * np.abs(one).max()


@pytest.mark.slow
def test_masks_embeddings_and_hidden_states_are_those_of_the_native_decoder(both: Any) -> None:
    tokens = PROMPTS[0][:7]
    positions, pages = u32(np.arange(7)), u32([3, 9])
    outputs = [Logits(6), Logits(0), Hidden(5), Hidden(6)]
    compared(both, ForwardItem(pages, 0, tokens, positions), outputs)
    bits = np.random.default_rng(1).random((7, 7)) < 0.6
    bits |= np.eye(7, dtype=bool)
    mask = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    compared(both, ForwardItem(pages, 0, tokens, positions, mask=mask), outputs)
    compared(both, ForwardItem(pages, 0, tokens, positions, mask=mask, causal=False), outputs)
    values = np.random.default_rng(2).standard_normal((2, 48)).astype(np.float32)
    compared(both, ForwardItem(pages, 0, tokens, positions, embeds=(u32([1, 4]), values)), outputs)
    given = both[0].embed(tokens)
    assert np.array_equal(given, both[1].embed(tokens))
    plain = [runner.step([ForwardItem(pages, 0, tokens, positions)], [[Logits(6)]])[0][0] for runner in both[:2]]
    for runner, want in zip(both[:2], plain, strict=True):
        item = ForwardItem(pages, 0, u32([0] * 7), positions, embeds=(u32(np.arange(7)), given))
        assert np.abs(runner.step([item], [[Logits(6)]])[0][0] - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.slow
def test_adapters_add_the_same_to_either_way(both: Any) -> None:
    file = AdapterFile("one", as_bytes(random_lora(both[2], 3)))
    items = []
    for runner in both[:2]:
        adapter = runner.read_adapter(file, 1 << 20)
        item = Sequence(runner, 5, 4).item(PROMPTS[1][:9])
        item.adapter = adapter
        items.append(item)
    plain = both[1].step([Sequence(both[1], 5, 4).item(PROMPTS[1][:9])], [[Logits(8)]])[0][0]
    found = []
    for runner, item in zip(both[:2], items, strict=True):
        beside = Sequence(runner, 40, 4).item(PROMPTS[3])
        found.append(runner.step([beside, item], [[Logits(0)], [Logits(8)]])[1][0])
    assert np.abs(found[0] - found[1]).max() < 1e-4 * np.abs(found[0]).max()
    assert np.abs(found[1] - plain).max() > 0.01 * np.abs(plain).max()


@pytest.mark.slow
def test_an_adapter_for_what_a_module_does_not_have_is_refused(tmp_path: Path) -> None:
    make_model("gpt_neox", tmp_path)
    runner = hosted(tmp_path)
    name = "base_model.model.gpt_neox.layers.1.attention.dense.lora_{}.weight"
    pair = {name.format("A"): torch.randn(2, 48), name.format("B"): torch.randn(48, 2)}
    adapter = runner.read_adapter(AdapterFile("one", as_bytes(pair)), 1 << 20)
    assert (adapter.rank, adapter.targets) == (2, ("dense",))
    wrong = {key.replace("attention.dense", "self_attn.q_proj"): value for key, value in pair.items()}
    with pytest.raises(ModelError, match=r"is no LoRA weight of a decoder; a name is base_model\.model\.gpt_neox"):
        runner.read_adapter(AdapterFile("two", as_bytes(wrong)), 1 << 20)


@pytest.mark.slow
def test_a_model_without_such_matrices_takes_no_adapter(tmp_path: Path) -> None:
    model_type, changes = HOSTED["gpt2"]  # whose matrices are of a class of its own
    make_model(model_type, tmp_path, **changes)
    with pytest.raises(ModelError, match="matrices that all tokens go through; this model has none"):
        hosted(tmp_path).read_adapter(AdapterFile("one", as_bytes({"x.lora_A.weight": torch.zeros(1, 1)})), 1 << 20)


def test_the_page_of_models_has_all_that_are_compared() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[2].strip()
        for line in page.splitlines()
        if line.startswith("| `") and re.search(r"\de-\d", line)
    ]
    seen = [f"{family}, with images" for family in seeing.FAMILIES]
    assert sorted(rows) == sorted([*FAMILIES, *HOSTED, *seen]), "`make models` writes it anew"
    assert all(f"`{name}`" in page for name in ARCHITECTURES)


@pytest.mark.slow
def test_bad_items_fail_alone(both: Any) -> None:
    runner = both[1]
    good, bad = Sequence(runner, 0, 4).item(PROMPTS[3]), Sequence(runner, 8, 4).item(u32([5, 96]))
    results = runner.step([bad, good], [[Logits(1)], [Logits(8)]])
    assert isinstance(results[0], InvalidRequest)
    assert np.isfinite(results[1][0]).all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "MambaForCausalLM": ({"model_type": "mamba"}, "recurrent state"),
    "Qwen3NextForCausalLM": ({"model_type": "qwen3_next"}, "recurrent state"),
    "BartForConditionalGeneration": ({"model_type": "bart"}, "an encoder-decoder"),
    "T5ForConditionalGeneration": ({"model_type": "t5"}, "an encoder-decoder"),
    "BertForMaskedLM": ({"model_type": "bert"}, "not a causal language model"),
    "BloomForCausalLM": ({"model_type": "bloom"}, "its layers compute attention themselves"),
    "FalconForCausalLM": ({"model_type": "falcon"}, "compute attention themselves"),
    "Llama4ForCausalLM": ({"model_type": "llama4_text"}, "neither causal nor a sliding window"),
    "DeepseekV32ForCausalLM": ({"model_type": "deepseek_v32"}, "its attention takes indices"),
    "MyOwnForCausalLM": ({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}, "never runs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_by_name_before_a_weight_is_read(name: str, tmp_path: Path) -> None:
    raw, says = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], **raw}))
    (tmp_path / "mine.py").write_text("raise SystemExit('code of a model ran')")
    (tmp_path / "model.safetensors").write_bytes(b"nobody reads this")
    with pytest.raises(ModelError) as caught:
        ModelRunner.load(tmp_path)
    assert str(tmp_path / "config.json") in caught.value.message
    assert name in caught.value.message
    assert says in caught.value.message


@pytest.mark.slow
def test_quantized_weights_are_refused_either_way(tmp_path: Path) -> None:
    raw = {"architectures": ["GptOssForCausalLM"], "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="quantization_config: quant_method is 'mxfp4'"):
        way_of(tmp_path)


@pytest.mark.slow
def test_a_native_architecture_out_of_the_ordinary_says_why_it_is_not(tmp_path: Path) -> None:
    make_model("llama", tmp_path, hidden_act="gelu")
    way = way_of(tmp_path)
    assert way.kind == "transformers"
    assert "hidden_act is 'gelu'; supported: silu" in way.why
    make_model("llama", tmp_path)
    assert (way_of(tmp_path).kind, way_of(tmp_path).why) == ("native", "")


@pytest.mark.slow
def test_missing_weights_and_pickles_are_refused(tmp_path: Path) -> None:
    make_model("glm4", tmp_path, head_dim=16)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.self_attn.o_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing keys: model\.layers\.1\.self_attn\.o_proj\.weight"):
        ModelRunner.load(tmp_path, num_pages=8)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="pickled weights run code when loaded and are never read"):
        ModelRunner.load(tmp_path, num_pages=8)


@pytest.mark.slow
def test_a_module_that_computes_something_else_over_pages_is_refused_at_load(tmp_path: Path) -> None:
    """Here, a layer that looks at its neighbour in the row of tokens, as a convolution does."""
    make_model("glm4", tmp_path, head_dim=16)
    config, found = hosted_config(tmp_path)
    decoder = TransformersDecoder.load(tmp_path, config, found, torch.float32, "cpu")
    decoder.check("here")
    decoder.model.model.layers[0].mlp.register_forward_hook(lambda _module, _given, y: y + y.roll(1, 1))
    with pytest.raises(ModelError, match=r"Glm4ForCausalLM does not compute over pages what it computes by itself"):
        decoder.check("here")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("wanted", ["flash_attention_2", "kernels-community/x", "no_such_way"])
def test_attention_that_a_config_asks_for_is_not_taken(key: str, wanted: str, tmp_path: Path) -> None:
    """Neither what would be loaded from a hub nor a package that may be there."""
    model_type, changes = HOSTED["gpt2"]
    expected = expected_logits(make_model(model_type, tmp_path, **changes))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: wanted}))
    runner = ModelRunner.load(tmp_path, num_pages=64, page_size=4)
    assert isinstance(runner.decoder, TransformersDecoder)
    assert runner.decoder.model.config._attn_implementation == "pieray_paged"
    assert largest_difference(runner, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("key", ["experts_implementation", "_experts_implementation"])
def test_experts_that_a_config_asks_for_are_not_taken(key: str, tmp_path: Path) -> None:
    model_type, changes = HOSTED["olmoe"]
    expected = expected_logits(make_model(model_type, tmp_path, **changes))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "no_such_way"}))
    assert largest_difference(ModelRunner.load(tmp_path, num_pages=64, page_size=4), expected) < 1e-4


@pytest.mark.slow
def test_a_folder_of_an_adapter_is_refused(tmp_path: Path) -> None:
    model_type, changes = HOSTED["gpt2"]
    make_model(model_type, tmp_path, **changes)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    with pytest.raises(ModelError, match=r"adapter_config\.json: the folder is of an adapter"):
        ModelRunner.load(tmp_path, num_pages=8)


@pytest.mark.slow
def test_whatever_transformers_raises_at_load_is_said(tmp_path: Path) -> None:
    """Here, a generation config with which it fails in its own ways."""
    model_type, changes = HOSTED["gpt2"]
    make_model(model_type, tmp_path, **changes)
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"transformers cannot load it: \w+"):
        ModelRunner.load(tmp_path, num_pages=8)
