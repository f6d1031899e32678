"""Scaled rotary embeddings: the frequencies of transformers, and whole models at the length they are served with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_model, ragged_logits, u32
from transformers import CONFIG_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pieray.errors import ModelError
from pieray.models.config import ModelConfig
from pieray.models.rope import inverse_frequencies
from pieray.models.rope_config import RopeReader
from pieray.models.runner import ModelRunner

HEAD_DIM = 12
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(HEAD_DIM // 2)],
    "long_factor": [2.0 + i for i in range(HEAD_DIM // 2)],
    "original_max_position_embeddings": 20,
}
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "factor": 4.0}
#: what the config says, and the context that is served
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "yarn": (YARN, 256),
    "yarn, other ramp": ({**YARN, "beta_fast": 16, "beta_slow": 2}, 256),
    "yarn, not rounded": ({**YARN, "truncate": False}, 256),
    "yarn, mscale": ({**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}, 256),
    "yarn, attention factor": ({**YARN, "attention_factor": 1.25}, 256),
    "yarn, wide ramp": ({**YARN, "original_max_position_embeddings": 4096, "factor": 40.0}, 256),
    "dynamic, within the model's context": (DYNAMIC, 200),
    "dynamic, beyond it": (DYNAMIC, 900),
    "longrope, short": (LONGROPE, 20),
    "longrope, long": (LONGROPE, 21),
    "longrope, factors given": ({**LONGROPE, "factor": 3.0, "attention_factor": 1.1}, 256),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        256,
    ),
    "linear": ({"rope_type": "linear", "factor": 3.0}, 256),
}


@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_those_of_transformers_at_the_served_context(name: str) -> None:
    given, context = CASES[name]
    theta = 5e4
    theirs = CONFIG_MAPPING["llama"](
        hidden_size=48,
        num_attention_heads=4,
        max_position_embeddings=256,
        rope_parameters={**given, "rope_theta": theta},
    )
    want, factor = ROPE_INIT_FUNCTIONS[given["rope_type"]](theirs, "cpu", seq_len=context)
    rope = RopeReader({"rope_scaling": given, "rope_theta": theta}, "here", 256, HEAD_DIM, context).plain()
    torch.testing.assert_close(inverse_frequencies(rope, HEAD_DIM), want, rtol=1e-5, atol=0)
    assert rope.attention_factor == pytest.approx(factor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "rope", "context", "length"),
    [
        ("phi3", LONGROPE, 20, 17),
        ("phi3", LONGROPE, 256, 33),
        ("llama", LONGROPE, 256, 33),
        ("llama", {**DYNAMIC, "rope_theta": 1e4}, 300, 300),
        ("qwen3", {**YARN, "rope_theta": 1e4}, 0, 200),
        # these two through transformers' module, whose ropes would grow with the longest text of a batch
        ("cohere", {**DYNAMIC, "rope_theta": 1e4}, 300, 300),
        ("phi3, partial", {**LONGROPE, "short_factor": [1.1] * 4, "long_factor": [3.0, 4.0, 5.0, 6.0]}, 256, 33),
    ],
)
def test_logits_equal_transformers_at_the_served_context(
    model_type: str, rope: dict[str, Any], context: int, length: int, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"rope_parameters": {"rope_theta": 1e4, **rope}}
    if model_type.startswith("phi3"):
        changes["original_max_position_embeddings"] = 20
    if model_type == "phi3, partial":
        changes |= {"hidden_size": 64, "partial_rotary_factor": 0.5}
    model = make_model(model_type.partition(",")[0], tmp_path, **changes)
    prompt = u32(np.random.default_rng(5).integers(3, 96, length))
    with torch.inference_mode():
        want = model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0].numpy()
    runner = ModelRunner.load(tmp_path, num_pages=40, max_context=context)
    assert runner.way == ("transformers" if model_type in ("cohere", "phi3, partial") else "native")
    short = prompt[:3]
    for prompts, chunks in (([prompt], [length]), ([short, prompt], [1, 16])):
        logits = ragged_logits(runner, prompts, chunks, pages_each=20)[-1]
        assert np.abs(logits - want).max() < 1e-4 * np.abs(want).max()


def test_a_context_that_the_rope_does_not_reach_is_refused(tmp_path: Path) -> None:
    make_model("llama", tmp_path, rope_parameters={**YARN, "rope_theta": 1e4})
    assert ModelConfig.from_folder(tmp_path, 100).max_position == 100
    with pytest.raises(
        ModelError, match=r"context of 257 tokens; max_position_embeddings is 256, and 256 can be served"
    ):
        ModelConfig.from_folder(tmp_path, 257)
    make_model("llama", tmp_path, rope_parameters={**DYNAMIC, "rope_theta": 1e4})
    assert ModelConfig.from_folder(tmp_path, 1024).max_position == 1024
    with pytest.raises(ModelError, match=r"context of 1025 tokens; max_position_embeddings is 256, and 1024 can"):
        ModelConfig.from_folder(tmp_path, 1025)
