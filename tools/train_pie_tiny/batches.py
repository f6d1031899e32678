"""Ragged training batches: documents of like length side by side, so that no mask is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer

from tools.train_pie_tiny.mixture import document
from tools.train_pie_tiny.tasks import Segment

IGNORED = -100
PAD_ID = 0
LENGTH_SLACK = 1.25


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as token ids, and for each whether the model writes it."""

    ids: list[int]
    is_output: list[bool]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens `[start, start + rows * length)` of the flat batch are `rows` documents."""

    start: int
    rows: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.length


@dataclass(frozen=True, slots=True)
class Batch:
    """Flat ids, next-token targets (`IGNORED` where untrained), positions, and the buckets."""

    ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    buckets: tuple[Bucket, ...]


def encode(tokenizer: Tokenizer, segments: Sequence[Segment]) -> Encoded:
    """Encodes each segment on its own: what a host inserts never merges with what the model wrote."""
    ids: list[int] = []
    is_output: list[bool] = []
    for segment in segments:
        tokens = tokenizer.encode(segment.text, add_special_tokens=False).ids
        ids += tokens
        is_output += [segment.is_model_output] * len(tokens)
    return Encoded(ids, is_output)


def _groups(documents: Sequence[Encoded]) -> list[list[Encoded]]:
    """Splits by length, so that no document is padded by more than `LENGTH_SLACK` and four."""
    groups: list[list[Encoded]] = []
    for item in sorted(documents, key=lambda d: len(d.ids)):
        if groups and len(item.ids) <= len(groups[-1][0].ids) * LENGTH_SLACK + 4:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def collate(documents: Sequence[Encoded]) -> Batch:
    """Lays the documents out flat; the last token of each is only a target."""
    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    buckets: list[Bucket] = []
    for group in _groups(documents):
        length = len(group[-1].ids) - 1
        buckets.append(Bucket(len(ids), len(group), length))
        for item in group:
            padding = length - (len(item.ids) - 1)
            wanted = zip(item.ids[1:], item.is_output[1:], strict=True)
            ids += item.ids[:-1] + [PAD_ID] * padding
            targets += [t if on else IGNORED for t, on in wanted] + [IGNORED] * padding
            positions += range(length)
    return Batch(torch.tensor(ids), torch.tensor(targets), torch.tensor(positions), tuple(buckets))


def training_batch(tokenizer: Tokenizer, seed: int, step: int, tokens: int) -> Batch:
    """The batch of step `step`: at least `tokens` tokens, a function of its arguments only."""
    rng = Random(f"batch:{seed}:{step}")
    documents: list[Encoded] = []
    total = 0
    while total < tokens:
        documents.append(encode(tokenizer, document(rng, step).segments))
        total += len(documents[-1].ids)
    return collate(documents)
