"""What tests of the inferlets that come with pieray share: held-out items, many launches, the model of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pieray.assets import model_folder
from tools.train_pie_tiny.tasks import Item, held_out

TIMEOUT_S = 120


def run_all(engine: Any, name: Any, inputs: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The results of one program for several inputs, all launched at the same time."""
    processes = engine.launch_many([(name, given) for given in inputs])
    return [process.result(timeout=TIMEOUT_S) for process in processes]


def run_one(engine: Any, name: Any, /, **arguments: Any) -> Any:
    """The result of one program."""
    return engine.launch(name, arguments).result(timeout=TIMEOUT_S)


def questions(task: str, n: int, seed: int = 0) -> list[tuple[str, str, Item]]:
    """Held-out items of a chat task: the user's message, the right reply, the item."""
    found = []
    for item in held_out(task, n, seed):
        said = "".join(one.text for one in item.segments if one.is_model_output).removesuffix("<|end|>")
        asked = item.segments[0].text.removeprefix("<|user|>").partition("<|end|>")[0]
        found.append((asked, said, item))
    return found


def total(asked: str) -> str:
    """The right sum of a question like 12+7=?"""
    one, other = asked.partition("=")[0].split("+")
    return str(int(one) + int(other))


class Reference:
    """The embedded model as transformers runs it: logits of every row, under any mask and positions."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = model_folder("pie-tiny")
        load = AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.stop = int(self.model.config.eos_token_id)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def chat(self, text: str) -> list[int]:
        return self.encode(f"<|user|>{text}<|end|><|assistant|>")

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def logits(
        self, tokens: Sequence[int], *, visible: np.ndarray | None = None, positions: Sequence[int] | None = None
    ) -> np.ndarray:
        """[tokens, vocabulary], float64; `visible[i, j]`: token i attends to token j (None: causal)."""
        given: dict[str, Any] = {}
        if visible is not None:
            bias = torch.where(torch.from_numpy(visible), 0.0, torch.finfo(torch.float32).min)
            given["attention_mask"] = bias[None, None]
        if positions is not None:
            given["position_ids"] = torch.tensor([list(positions)])
        with torch.inference_mode():
            return self.model(torch.tensor([list(tokens)]), **given).logits[0].double().numpy()

    def log_probs(self, tokens: Sequence[int], **given: Any) -> np.ndarray:
        rows = self.logits(tokens, **given)
        return (
            rows
            - np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - rows.max(-1, keepdims=True)
        )
