"""Reward models and classifiers: scores are transformers' own, alone and beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import COMMON, FAMILIES, HOSTED, PROMPTS, Sequence
from safetensors.torch import load_file, save_file

from pieray.errors import InvalidRequest, ModelError
from pieray.messages import Hidden, Sample, Sampler
from pieray.models.pooling import Pooling
from pieray.models.runner import ModelRunner
from pieray.models.ways import glance

KINDS = {**FAMILIES, **HOSTED}
NAMES = ("llama", "qwen2", "qwen3", "gemma2", "mistral, window 8", "gpt2", "gpt_neox")


def make_scorer(name: str, folder: Path, num_labels: int) -> Any:
    from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

    torch.manual_seed(0)
    model_type, changes = KINDS[name]
    config = CONFIG_MAPPING[model_type](**{**COMMON, **changes, "num_labels": num_labels})
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    for num_labels in (1, 3):
        model = make_scorer(name, tmp_path, num_labels)
        with torch.inference_mode():
            want = [model(torch.from_numpy(one.astype(np.int64))[None]).logits[0].numpy() for one in PROMPTS]
        runner = ModelRunner.load(tmp_path, num_pages=64)
        items = [Sequence(runner, 8 * i, 8).item(prompt) for i, prompt in enumerate(PROMPTS)]
        together = runner.step(items, [[Hidden(-1)]] * len(items))
        alone = [runner.step([item], [[Hidden(-1)]])[0] for item in items]
        for found in (together, alone):
            for one, scores in zip(found, want, strict=True):
                assert isinstance(one, list), one
                assert np.shape(one[0]) == (num_labels,)
                assert np.abs(one[0] - scores).max() <= 1e-4 * max(1.0, np.abs(scores).max())


def test_a_model_that_scores_predicts_no_tokens(tmp_path: Path) -> None:
    make_scorer("llama", tmp_path, 1)
    assert glance(tmp_path)[0] == "native"
    assert Pooling.from_folder(tmp_path) == Pooling("last", is_normalized=False)
    runner = ModelRunner.load(tmp_path, num_pages=8)
    (found,) = runner.step([Sequence(runner, 0, 8).item(PROMPTS[0])], [[Sample(-1, Sampler())]])
    assert isinstance(found, InvalidRequest)
    assert "scores texts and predicts no tokens" in found.message


def test_a_head_that_is_missing_or_odd_is_named(tmp_path: Path) -> None:
    make_scorer("llama", tmp_path, 2)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "score.weight": torch.zeros(2, 7)}, path)
    with pytest.raises(ModelError, match=r"'score.weight' is float32 \(2, 7\); supported: floats \[labels, 48\]"):
        ModelRunner.load(tmp_path, num_pages=4)
    del tensors["score.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match="no 'score.weight'"):
        ModelRunner.load(tmp_path, num_pages=4)
