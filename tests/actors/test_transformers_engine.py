"""A model that runs through transformers' module, served by an engine: plans, drafts, forks, masks, an adapter."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import assert_pages_return
from loras import as_folder
from programs import program
from safetensors.torch import load_file, save_file

import pieray
from pieray.assets import model_folder

PROMPT = "Sort: 3 1 2 9"

GENERATED = program(
    """
import asyncio
from inferlet import Context

async def main(prompt, max_tokens, drafter=None, adapter=None):
    async def said(ctx):
        generation = ctx.generate(max_tokens, stop_tokens=(), drafter=drafter, adapter=adapter)
        await generation
        return generation.tokens
    async with Context(prompt) as ctx:
        await ctx.flush()
        forks = [ctx.fork() for _ in range(3)]
        found = await asyncio.gather(said(ctx), *(said(fork) for fork in forks))
        for fork in forks:
            fork.close()
        return found
""",
    "generated",
)

LOGITS = program(
    """
from inferlet import adapters, forward, kv, model, queue

async def main(prompt, adapter=None):
    tokens, line = model.tokenize(prompt), queue.create()
    adapter = adapters.open(adapter) if adapter else None
    def fresh():
        return kv.alloc(-(-len(tokens) // kv.page_size()))
    plain = forward.forward(line, fresh(), 0, tokens, adapter=adapter).logits()
    masked = forward.forward(line, fresh(), 0, tokens)
    for row in range(1, len(tokens)):
        masked.mask_runs(row, [1])  # nobody but the first token sees the first token
    masked = masked.logits()
    rest = forward.forward(line, fresh(), 0, tokens[1:], positions=list(range(1, len(tokens)))).logits()
    found = [await plain, await masked, await rest]
    if adapter is not None:
        adapter.close()
    return found
""",
    "logits",
)

DENSE = "model.layers.{}.self_attn.o_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random GLM-4 with the tokenizer of pie-tiny."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    folder, tiny = tmp_path_factory.mktemp("glm4"), model_folder("pie-tiny")
    torch.manual_seed(0)
    config = CONFIG_MAPPING["glm4"](
        vocab_size=640,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 64, "pooling_mode_mean_tokens": true}'
    )
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.fixture(scope="module")
def lora() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    names = [f"base_model.model.{DENSE.format(layer)}.lora_{half}.weight" for layer in range(2) for half in "AB"]
    shapes = {"A": (4, 64), "B": (64, 4)}
    return {name: torch.randn(shapes[name[-8]], generator=rng) * 0.2 for name in names}


@pytest.fixture(scope="module")
def started(
    ray_cluster: None, folder: Path, lora: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    adapter = as_folder(lora, tmp_path_factory.mktemp("adapter"))
    settings = {"path": str(folder), "adapters": {"one": str(adapter)}, "num_pages": 64}
    with pieray.start(namespace=f"glm4-{time.time_ns()}", model=settings) as engine:
        yield engine


@pytest.fixture
def engine(started: Any) -> Iterator[Any]:
    yield started
    assert_pages_return(started)


def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ids_of(folder: Path, text: str = PROMPT) -> torch.Tensor:
    from transformers import PreTrainedTokenizerFast

    return torch.tensor([PreTrainedTokenizerFast.from_pretrained(folder).encode(text)])


def test_the_engine_says_which_way_the_model_runs(engine: Any) -> None:
    (facts,) = engine.models()
    assert (facts["architecture"], facts["way"]) == ("glm4", "transformers")
    assert facts["why"] == "Glm4ForCausalLM has no decoder of pieray's own"


@pytest.mark.parametrize("drafter", [None, "ngram"])
def test_plans_drafts_and_forks_say_what_transformers_says(drafter: str | None, engine: Any, folder: Path) -> None:
    ids, model = ids_of(folder), reference(folder)
    with torch.inference_mode():
        for _ in range(24):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
    said = engine.launch(GENERATED, {"prompt": PROMPT, "max_tokens": 24, "drafter": drafter}).result(timeout=60)
    assert said == [ids[0, -24:].tolist()] * 4


def test_a_text_has_the_vector_that_the_folder_describes(engine: Any, folder: Path) -> None:
    """The mean of its states, not brought to length 1."""
    texts = [PROMPT, "12+7="]
    found = engine.launch("openai-embeddings", {"inputs": texts}).result(timeout=60)["vectors"]
    for text, vector in zip(texts, found, strict=True):
        with torch.inference_mode():
            states = reference(folder).model(ids_of(folder, text)).last_hidden_state[0]
        np.testing.assert_allclose(vector, states.mean(0), rtol=1e-3, atol=1e-3)


def test_masks_and_adapters_compute_what_they_say(
    engine: Any, folder: Path, lora: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    plain, masked, rest = engine.launch(LOGITS, {"prompt": PROMPT}).result(timeout=60)
    with torch.inference_mode():
        np.testing.assert_allclose(plain, reference(folder)(ids_of(folder)).logits[0, -1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(masked, rest, rtol=1e-3, atol=1e-3)
    adapted = engine.launch(LOGITS, {"prompt": PROMPT, "adapter": "one"}).result(timeout=60)[0]
    shutil.copytree(folder, tmp_path / "merged")
    weights = load_file(folder / "model.safetensors")
    for layer in range(2):
        a, b = (lora[f"base_model.model.{DENSE.format(layer)}.lora_{half}.weight"] for half in "AB")
        weights[f"{DENSE.format(layer)}.weight"] += b @ a
    save_file(weights, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    with torch.inference_mode():
        want = reference(tmp_path / "merged")(ids_of(folder)).logits[0, -1]
    np.testing.assert_allclose(adapted, want, rtol=1e-3, atol=1e-3)
    assert np.abs(np.array(adapted) - np.array(plain)).max() > 0.05
