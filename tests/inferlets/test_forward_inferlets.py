"""Inferlets on drafts, logits and hidden states, on a running engine with pie-tiny, against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engines import run

from pieray.assets import model_folder

SORT = "Sort: 3 1 2"
REPEAT = "Repeat: red blue red blue red blue"


def complete(engine: Any, prompt: str, **arguments: object) -> str:
    text: str = run(engine, "text-completion", prompt=prompt, **arguments)["text"]
    return text


@pytest.fixture(scope="module")
def reference() -> Any:
    """The model and the tokenizer of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder("pie-tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "seed": 3}, {"temperature": 1.2, "seed": 4}])
def test_a_drafted_tree_gives_the_text_of_decoding_without_it(engine: Any, options: dict[str, Any]) -> None:
    result = run(engine, "speculative-tree", prompt=REPEAT, chat=True, max_tokens=32, **options)
    assert result["text"] == complete(engine, REPEAT, chat=True, max_tokens=32, **options)
    assert result["num_accepted"] <= result["num_drafted"]
    if not options:
        assert result["num_passes"] < result["num_tokens"]
        assert result["num_accepted"] > 0


def test_guidance_is_greedy_at_one_and_the_other_prompt_at_zero(engine: Any) -> None:
    for scale, prompt in ((1.0, SORT), (0.0, REPEAT)):
        options = {"prompt": SORT, "away": REPEAT, "scale": scale, "max_tokens": 12, "chat": True}
        guided = run(engine, "classifier-free-guidance", **options)
        assert guided["text"] == complete(engine, prompt, max_tokens=12, chat=True)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guided_text_is_that_of_transformers(engine: Any, reference: Any, scale: float) -> None:
    model, tokenizer = reference
    lines = [tokenizer.encode(prompt) for prompt in ("12+7=", "The ")]
    said: list[int] = []
    with torch.inference_mode():
        for _ in range(8):
            good, bad = (model(torch.tensor([[*line, *said]])).logits[0, -1] for line in lines)
            said.append(int((bad + scale * (good - bad)).argmax()))
            if said[-1] == model.config.eos_token_id:
                break
    guided = run(engine, "classifier-free-guidance", prompt="12+7=", away="The ", scale=scale, max_tokens=8)
    assert guided["text"] == tokenizer.decode([token for token in said if token != model.config.eos_token_id])
    assert guided["num_tokens"] == len(said)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_the_hidden_states_of_transformers(engine: Any, reference: Any, pooling: str) -> None:
    model, tokenizer = reference
    texts = ["12+7=", "Repeat: red blue", "a big doctor"]
    result = run(engine, "embedding", texts=texts, pooling=pooling)
    with torch.inference_mode():
        for text, vector in zip(texts, result["vectors"], strict=True):
            ids = torch.tensor([tokenizer.encode(text)])
            states = model(ids, output_hidden_states=True).hidden_states[-1][0]
            want = states[-1] if pooling == "last" else states.mean(0)
            np.testing.assert_allclose(vector, want.numpy(), rtol=1e-3, atol=1e-3)


def test_like_texts_are_more_alike_than_others(engine: Any) -> None:
    texts = ["12+7=", "31+5=", "Repeat: red blue", "Repeat: green red"]
    table = np.array(run(engine, "embedding", texts=texts)["similarity"])
    np.testing.assert_allclose(table, table.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-6)
    assert table[0, 1] > max(table[0, 2], table[0, 3])
    assert table[2, 3] > max(table[2, 0], table[3, 0])


def test_a_wrong_pooling_is_named(engine: Any) -> None:
    with pytest.raises(Exception, match="pooling is last or mean; given 'max'"):
        run(engine, "embedding", texts=["a"], pooling="max")
