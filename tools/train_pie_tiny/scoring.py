"""Exact match by teacher forcing, for the training model.

Greedy decoding writes exactly the wanted tokens if and only if every wanted token is the most
likely one after the wanted tokens before it; one forward pass tells.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from tools.train_pie_tiny import tasks
from tools.train_pie_tiny.batches import IGNORED, Batch, collate, encode
from tools.train_pie_tiny.model import Decoder


def matches(batch: Batch, predicted: torch.Tensor) -> list[bool]:
    """For each document of the batch: are all its targets predicted?"""
    right = (batch.targets == IGNORED) | (predicted == batch.targets)
    results: list[bool] = []
    for bucket in batch.buckets:
        rows = right[bucket.start : bucket.stop].view(bucket.rows, bucket.length)
        results += rows.all(dim=1).tolist()
    return results


@torch.inference_mode()
def forced_scores(model: Decoder, tokenizer: Tokenizer, n: int, seed: int) -> dict[str, float]:
    """The share of held-out items of each task that greedy decoding gets exactly right.

    A grammar item has many right continuations, so its exact match says little: it is left out.
    """
    scores: dict[str, float] = {}
    for task in tasks.SCORED | tasks.BONUS:
        if task == "grammar":
            continue
        items = tasks.held_out(task, n, seed)
        batch = collate([encode(tokenizer, item.segments) for item in items])
        scores[task] = sum(matches(batch, model.logits(batch).argmax(dim=-1))) / n
    return scores
