"""A reward model on an engine: the scores of texts, as transformers computes them, through what serves embeddings."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

import pytest
import torch
from engines import assert_pages_return

import pieray
from pieray.assets import model_folder
from pieray.errors import PierayError


@pytest.mark.slow
def test_an_engine_serves_a_reward_model(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    torch.manual_seed(0)
    tiny = json.loads((model_folder("pie-tiny") / "config.json").read_text())
    config = LlamaConfig(**{**tiny, "num_labels": 1, "architectures": None})
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder("pie-tiny") / name, tmp_path)
    texts = [[5, 9, 17, 40], [7], [100, 3, 8, 9, 10, 11, 12]]
    with torch.inference_mode():
        want = [float(model(torch.tensor([one])).logits[0, 0]) for one in texts]
    settings = {"path": str(tmp_path), "device": "cpu", "quantization": "none"}
    with pieray.start(settings, namespace=f"reward-{secrets.token_hex(3)}") as engine:
        found = engine.launch("openai-embeddings", inputs=texts).result(timeout=60)
        assert [len(one) for one in found["vectors"]] == [1, 1, 1]
        assert [one[0] for one in found["vectors"]] == pytest.approx(want, abs=1e-4)
        with pytest.raises(PierayError, match="scores texts and predicts no tokens"):
            engine.launch("text-completion", prompt="12+7=").result(timeout=60)
        assert_pages_return(engine)
