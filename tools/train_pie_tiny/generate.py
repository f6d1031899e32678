"""Greedy decoding and forced scoring with the exported folder, through `transformers` alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tools.train_pie_tiny.batches import IGNORED, PAD_ID, encode
from tools.train_pie_tiny.tasks import Segment
from tools.train_pie_tiny.words import END

ROWS = 50


class Generator:
    """A loaded model folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.end_id = self.tokenizer.token_to_id(END)

    @torch.inference_mode()
    def is_exact(self, documents: Sequence[Sequence[Segment]]) -> list[bool]:
        """For each document: does greedy decoding write exactly the model's segments?

        One forward pass tells: it does if and only if each wanted token is the most likely one
        after the wanted tokens before it.
        """
        results: list[bool] = []
        for first in range(0, len(documents), ROWS):
            encoded = [encode(self.tokenizer, d) for d in documents[first : first + ROWS]]
            width = max(len(item.ids) for item in encoded)
            ids = torch.full((len(encoded), width), PAD_ID)
            targets = torch.full((len(encoded), width), IGNORED)
            for row, item in enumerate(encoded):
                tokens = torch.tensor(item.ids)
                ids[row, : len(tokens)] = tokens
                is_output = torch.tensor(item.is_output)
                targets[row, : len(tokens)] = tokens.where(is_output, IGNORED)
            predicted = self.model(input_ids=ids).logits[:, :-1].argmax(dim=-1)
            right = (targets[:, 1:] == IGNORED) | (predicted == targets[:, 1:])
            results += right.all(dim=1).tolist()
        return results

    def write(self, prompts: Sequence[str], stops: Sequence[str], limit: int) -> list[str]:
        """Greedy continuations, each up to the end marker, a stop text or `limit` tokens."""
        texts: list[str] = []
        for first in range(0, len(prompts), ROWS):
            texts += self._write_rows(prompts[first : first + ROWS], stops, limit)
        return texts

    @torch.inference_mode()
    def _write_rows(self, prompts: Sequence[str], stops: Sequence[str], limit: int) -> list[str]:
        """One padded batch: pads stand on the left, masked out."""
        encoded = [self.tokenizer.encode(p, add_special_tokens=False).ids for p in prompts]
        width = max(map(len, encoded))
        ids = torch.tensor([[PAD_ID] * (width - len(row)) + row for row in encoded])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded])
        written: list[list[int]] = [[] for _ in prompts]
        is_done = [False] * len(prompts)
        cache = None
        for _ in range(limit):
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            chosen = output.logits[:, -1].argmax(dim=-1)
            for row, token in enumerate(chosen.tolist()):
                if not is_done[row]:
                    written[row].append(token)
                    is_done[row] = token == self.end_id or self._stops(written[row], stops)
            if all(is_done):
                break
            ids = chosen[:, None]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return [self.tokenizer.decode(row, skip_special_tokens=False) for row in written]

    def _stops(self, tokens: Sequence[int], stops: Sequence[str]) -> bool:
        tail = self.tokenizer.decode(list(tokens[-16:]), skip_special_tokens=False)
        return any(tail.endswith(stop) for stop in stops)
